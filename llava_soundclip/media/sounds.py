"""The sound of a file, or a part of it."""

import math
import sys
from typing import Any

import numpy as np
import soxr

from llava_soundclip.media.files import MediaError, Source, Track, check_seconds, opened
from llava_soundclip.media.waveforms import MAX_RATE, QUALITY, check_rate, check_waveform

_MIN_RATE = 100  # Hz; a lower rate is an error in the header, and resampling would need too much memory
_CONTEXT = 0.1  # seconds on both sides of a cut, for the resampler's filter
_PREROLL = 5.0  # seconds before a cut, for lossy codecs to settle after a seek


def load_audio(
    source: Source, *, sampling_rate: int, start: float = 0.0, duration: float | None = None
) -> np.ndarray:
    """Decode the sound of a file, or a part of it. Memory grows only with the part.

    A part equals the same slice of the whole sound; with lossy codecs, nearly. No silence is added: if the sound
    starts later than the video, or ends before `start + duration`, the result is shorter. A damaged or truncated
    file gives the part that can be decoded.

    Args:
        source: path, bytes or binary file object (read from its beginning), in any container and codec
            that PyAV knows. The best sound track of a video is used.
        sampling_rate: rate of the result in Hz.
        start: start in seconds on the video's clock.
        duration: duration in seconds; None for the rest of the sound.

    Returns:
        (channels, samples) float32 in [-1, 1]; lossy codecs may overshoot slightly.

    Raises:
        MediaError: if the file can't be read, or has no sound in that part.
        TypeError: if `source` is none of the above.
        ValueError: for an invalid `sampling_rate`, `start` or `duration`.
    """
    check_rate(sampling_rate)
    check_seconds("start", start)
    if duration is not None:
        check_seconds("duration", duration)
        if duration == 0:
            raise ValueError("duration must be above 0 s")
    return _load(source, sampling_rate, start, duration)[0]


def load_audio_as_it_is(source: Source) -> tuple[np.ndarray, int]:
    """Decode the sound of a file at its own rate, for an encoder with its own resampling.

    Returns:
        (channels, samples) float32 as in `load_audio`, and the rate in Hz.

    Raises:
        MediaError, TypeError: as in `load_audio`.
    """
    return _load(source, None, 0.0, None)


def _load(
    source: Source, sampling_rate: int | None, start: float, duration: float | None
) -> tuple[np.ndarray, int]:
    with opened(source) as (container, name):
        waveform, rate = _cut(Track(container, name, "audio"), sampling_rate, start, duration)
    try:
        return check_waveform(waveform, name="the sound"), rate
    except ValueError as error:
        raise MediaError(f"{name}: {error}") from error


def _cut(
    track: Track, wanted_rate: int | None, start: float, duration: float | None
) -> tuple[np.ndarray, int]:
    """Decode a part to (channels, samples) and its rate; `wanted_rate=None` means the sound's own rate.

    Samples outside the part are dropped at once.
    """
    frames = track.frames(start - _CONTEXT - _PREROLL if start else 0.0)
    time, frame = next(frames, (0.0, None))
    if frame is None:
        raise track.nothing()
    block = _samples(frame, track.name)
    rate, channels = frame.sample_rate, len(block)
    if not _MIN_RATE <= rate <= MAX_RATE:
        raise MediaError(f"{track.name}: it claims a sampling rate of {rate} Hz")
    to_rate = rate if wanted_rate is None else wanted_rate

    # Positions are samples on the video's clock. The input starts where both rates have a sample, so the output has
    # the same sample times as that of the whole sound.
    period = rate // math.gcd(rate, to_rate)
    position = round(time * rate)
    begin, end, low, high = position, sys.maxsize, -sys.maxsize, sys.maxsize
    if start:
        begin = max(position, math.floor((start - _CONTEXT) * rate / period) * period)
        low = round(start * to_rate)
    if duration is not None:
        end = math.ceil((start + duration + _CONTEXT) * rate)
        high = max(round((start + duration) * to_rate), round(start * to_rate) + 1)
    stream = soxr.ResampleStream(rate, to_rate, channels, dtype="float32", quality=QUALITY)
    out = round(begin * to_rate / rate)
    kept: list[np.ndarray] = []

    def keep(block: np.ndarray, *, last: bool = False) -> None:
        nonlocal out
        if rate != to_rate:
            block = stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
        wanted = block[:, max(0, low - out) : max(0, high - out)]
        if wanted.size:
            kept.append(wanted.copy())
        out += block.shape[1]

    while frame is not None and position < end:
        block = _samples(frame, track.name)
        if (frame.sample_rate, len(block)) != (rate, channels):
            raise MediaError(
                f"{track.name}: its sound changes from {channels} channels at {rate} Hz to {len(block)} at "
                f"{frame.sample_rate} Hz in the middle"
            )
        keep(block[:, max(0, begin - position) : end - position])
        position += block.shape[1]
        _, frame = next(frames, (0.0, None))
    keep(np.empty((channels, 0), np.float32), last=True)
    if kept:
        return np.concatenate(kept, axis=1), to_rate
    if low < position * to_rate / rate < high and block.size:  # shorter than one sample at the new rate
        return block.mean(axis=1, keepdims=True), to_rate
    if position <= 0:
        raise track.nothing()
    until = "" if duration is None else f" to {start + duration:g} s"
    where = f"begins at {time:.2f} s" if position >= end else f"ends at {position / rate:.2f} s"
    raise MediaError(f"{track.name}: it has no sound from {start:g} s{until}; its sound {where}")


def _samples(frame: Any, name: str) -> np.ndarray:
    """Samples of a decoded frame in any format as (channels, samples) float32 in [-1, 1]."""
    try:
        samples = frame.to_ndarray()
    except ValueError as error:  # 64-bit integers
        raise MediaError(f"{name}: samples of the format {frame.format.name} are not supported") from error
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(np.float32)
