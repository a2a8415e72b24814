"""The sound of a file, or a part of it."""

import math
import sys
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import soxr

from llava_soundclip.media.files import (
    MAX_SECONDS,
    RESTART,
    MediaError,
    Source,
    Track,
    can_read_again,
    check_seconds,
    decode_track,
    duration_of,
    has_restarts,
    opened,
    warn,
)
from llava_soundclip.media.ogg import joined_files
from llava_soundclip.media.waveforms import MAX_RATE, QUALITY, check_rate, check_waveform

_MIN_RATE = 100  # Hz; a lower rate is an error in the header, and resampling would need too much memory
_CONTEXT = 0.1  # seconds on both sides of a cut, for the resampler's filter
_PREROLL = 5.0  # seconds before a cut, for lossy codecs to settle after a seek
_GAP = 0.1  # seconds without packets that count as a gap; time stamps may be that imprecise
_LONGEST_GAP = 3600.0  # seconds; a longer one is an error in the time stamps
_VALUES_PER_SECOND = 75_000  # of the longest sound, over all channels; stereo at 37.5 kHz


def load_audio(
    source: Source,
    *,
    sampling_rate: int,
    start: float = 0.0,
    duration: float | None = None,
    track: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Decode the sound of a file, or a part of it. Memory grows only with the part.

    A part equals the same slice of the whole sound; with lossy codecs, nearly. Silence stands where packets are missing
    in the middle, so each sample is the sound of its time. No silence is added before the sound begins or after it
    ends: there the result is shorter. A damaged or truncated file gives the part that can be decoded. If the rate or
    the number of channels changes in the middle, the rest is converted to those of the beginning.

    Args:
        source: path, bytes or binary file object (read from its beginning), in any container and codec
            that PyAV knows.
        sampling_rate: rate of the result in Hz.
        start: start in seconds on the video's clock.
        duration: duration in seconds; None for the rest of the sound.
        track: number of the sound track, counted from 0; None for the best one that can be decoded.
        max_seconds: length of the part above which it is refused; for many channels or a high rate, less.

    Returns:
        (channels, samples) float32 in [-1, 1]; lossy codecs may overshoot slightly.

    Raises:
        MediaError: if the file can't be read, or has no sound or too much in that part.
        TypeError: if `source` is none of the above.
        ValueError: for an invalid `sampling_rate`, `start` or `duration`.

    Warns:
        MediaWarning: if another track than the best is used, or the sound breaks off.
    """
    check_rate(sampling_rate)
    return _load(source, sampling_rate, start, duration, track, max_seconds)[0]


def load_audio_as_it_is(
    source: Source,
    *,
    start: float = 0.0,
    duration: float | None = None,
    track: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> tuple[np.ndarray, int]:
    """Decode the sound of a file, or a part of it, at its own rate, for an encoder with its own resampling.

    Returns:
        (channels, samples) float32 as in `load_audio`, and the rate in Hz.

    Raises:
        MediaError, TypeError, ValueError: as in `load_audio`.
    """
    return _load(source, None, start, duration, track, max_seconds)


def _load(
    source: Source,
    sampling_rate: int | None,
    start: float,
    duration: float | None,
    number: int | None,
    max_seconds: float,
) -> tuple[np.ndarray, int]:
    check_seconds("start", start)
    check_seconds("max_seconds", max_seconds)
    if duration is not None:
        check_seconds("duration", duration)
        if duration == 0:
            raise ValueError("duration must be above 0 s")

    with closing(joined_files(source)) as joined:
        first = next(joined, None)
        if first is not None:
            return _load_joined(
                chain([first], joined), first.name, sampling_rate, start, duration, number, max_seconds
            )
    for seek in (True, False):
        cut = partial(
            _cut,
            wanted_rate=sampling_rate,
            start=start,
            duration=duration,
            max_seconds=max_seconds,
            seek=seek,
            source=source if can_read_again(source) else None,
        )
        with opened(source) as (container, name):
            found = decode_track(container, name, "audio", cut, number)
        if found is not None:
            break
    assert found is not None
    waveform, rate = found
    try:
        return check_waveform(waveform, name="the sound"), rate
    except ValueError as error:
        raise MediaError(f"{name}: {error}") from error


def _load_joined(
    files: Iterable[BinaryIO],
    name: str,
    rate: int | None,
    start: float,
    duration: float | None,
    number: int | None,
    max_seconds: float,
) -> tuple[np.ndarray, int]:
    """Decode a part of a sound that is written in several files."""
    left = max_seconds
    begin, parts = 0.0, list[np.ndarray]()
    for file in files:
        first = max(0.0, start - begin)
        rest = None if duration is None else start + duration - begin - first
        if rest is not None and rest <= 0:
            break
        length = None
        try:
            with opened(file) as (container, _):
                length = duration_of(container)
            if length is None or first < length:
                part, rate = _load(file, rate, first, rest, number, left)
                left = max(0.0, left - part.shape[1] / rate)
                parts.append(part if not parts else _in_channels(part, len(parts[0])))
                if rest is None or part.shape[1] < round(rest * rate):
                    length = first + part.shape[1] / rate  # the header's may count what a codec discards
        except _TooLongError as error:
            raise _TooLongError(f"{name}: {_too_long(max_seconds, max_seconds)}") from error
        except MediaError as error:
            warn(name, f"a part of its sound is left out, from {begin + first:.2f} s: {error}")
        begin += length or 0.0
    if not parts:
        until = "" if duration is None else f" to {start + duration:g} s"
        raise MediaError(f"{name}: it has no sound from {start:g} s{until}; its sound ends at {begin:.2f} s")
    assert rate is not None
    return np.concatenate(parts, axis=1), rate


def _cut(
    track: Track,
    *,
    wanted_rate: int | None,
    start: float,
    duration: float | None,
    max_seconds: float,
    seek: bool,
    source: Source | None,
) -> tuple[np.ndarray, int] | None:
    """Decode a part to (channels, samples) and its rate; `wanted_rate=None` means the sound's own rate.

    In joined files several places have the same time stamp, or time is counted at a wrong rate. If a seek may lead to a
    wrong place, and `source` can be read again, the result is None: the seconds must be counted from the beginning,
    with `seek=False`.
    """
    at = max(0.0, start - _CONTEXT - _PREROLL) if start and seek else 0.0
    if at > 0 and source is not None and track.may_restart and has_restarts(source, track.stream.index):
        return None
    usual_rate = track.stream.codec_context.sample_rate
    frames = track.frames(at)
    time, frame = next(frames, (0.0, None))
    if frame is None:
        raise track.nothing()
    rate = wanted_rate or _rate_of(frame, track.name)
    part = _Part(track.name, rate, start, duration, max_seconds)
    while frame is not None and part.add(time, frame):
        if at > 0 and source is not None and track.is_counted and frame.sample_rate != usual_rate:
            return None
        time, frame = next(frames, (0.0, None))
    waveform = part.finish()
    if waveform is None:
        raise track.nothing() if part.position <= 0 else MediaError(f"{track.name}: {part.nothing()}")
    if frame is None and track.broken is not None:
        warn(
            track.name,
            f"its sound breaks off at {part.end:.2f} s: {getattr(track.broken, 'strerror', None) or track.broken}",
        )
    return waveform, part.rate


class _TooLongError(MediaError):
    """A sound is longer than the limit."""


def _too_long(seconds: float, limit: float) -> str:
    return f"its sound is longer than {seconds:g} s: give its start and end, or raise max_seconds={limit:g}"


class _Part:
    """Puts a part of a sound together, frame by frame. Samples outside the part are dropped at once.

    Positions count samples on the video's clock. A run is a piece of the sound without a gap, at one rate: it has a
    resampler of its own.

    Args:
        name: the file's name, for messages.
        rate: rate of the result in Hz.
        start: start of the part in seconds.
        duration: duration of the part in seconds; None for the rest of the sound.
        max_seconds: length above which it is refused.
    """

    def __init__(
        self, name: str, rate: int, start: float, duration: float | None, max_seconds: float
    ) -> None:
        self.max_seconds = max_seconds
        self._samples = 0  # of the result so far
        self.name, self.rate, self.start, self.duration = name, rate, start, duration
        stop = None if duration is None else start + duration
        self.low = round(start * rate) if start else -sys.maxsize
        self.high = sys.maxsize if stop is None else max(round(stop * rate), round(start * rate) + 1)
        self.first: float | None = None  # time of the first frame in seconds
        self.gap: tuple[float, float] | None = None  # the last gap, in seconds
        self.position = 0  # end of the frames so far, at the run's rate
        self.out = 0  # end of the result so far, at the result's rate
        self.kept: list[np.ndarray] = []
        self.heard = False  # whether sound was kept, not only silence
        self._channels = 0  # of the result
        self._run: tuple[int, int] | None = None  # rate and channels
        self._next: float | None = None  # time of the next frame in seconds, if nothing is missing
        self._behind = 0.0  # seconds that are missing so far
        self._fed = False  # whether any sample was inside the part
        self._last = np.empty((0, 0), np.float32)

    def add(self, time: float, frame: Any) -> bool:
        """Take a frame that begins at `time` in seconds. Returns whether the part goes on."""
        block = _samples(frame, self.name)
        if block.size == 0:
            return True
        run = (_rate_of(frame, self.name), len(block))
        if self._run is None:
            self.first, self._channels = time, len(block)
            self._begin(run, time)
            self.out = self._begun
        # A demuxer may count the time of frames imprecisely. Only jumps of half a frame or more are missing packets.
        jump = 0.0 if self._next is None else time - self._next
        length = block.shape[1] / run[0]
        self._next = time + length
        if abs(jump) > length / 2:
            self._behind += jump
        if not -RESTART <= self._behind <= _LONGEST_GAP:  # a clock that began anew, in joined files
            self._behind = 0.0
        elif self._behind > _GAP:
            self._end_run()
            self.gap = (self.end, self.end + self._behind)
            self._begin(run, self.gap[1])
            self._fill()
            self._behind = 0.0
        if run != self._run:
            self._end_run()
            self._begin(run, self.end, self.out if self._fed else None)
            self.out = self._begun
        if self.position >= self._end:
            return False
        inside = block[:, max(0, self._first - self.position) : self._end - self.position]
        self._fed = self._fed or inside.size > 0
        self._keep(inside)
        self.position += block.shape[1]
        self._last = block
        return self.position < self._end

    def finish(self) -> np.ndarray | None:
        """The part; None if there is no sound in it."""
        if self._run is None:
            return None
        self._end_run()
        if self.heard:
            return np.concatenate(self.kept, axis=1)
        if self._last.size and self.low < self.position * self.rate / self._run_rate < self.high:
            return _in_channels(self._last, self._channels).mean(axis=1, keepdims=True)  # less than a sample
        return None

    def nothing(self) -> str:
        """The reason why there is no sound in the part."""
        until = "" if self.duration is None else f" to {self.start + self.duration:g} s"
        missing = f"it has no sound from {self.start:g} s{until}"
        if self.gap is not None and self.gap[0] <= self.start + _CONTEXT and self.start < self.gap[1]:
            return f"{missing}; its sound is missing from {self.gap[0]:.2f} s to {self.gap[1]:.2f} s"
        if self.position >= self._end:
            return f"{missing}; its sound begins at {self.first:.2f} s"
        return f"{missing}; its sound ends at {self.end:.2f} s"

    @property
    def end(self) -> float:
        """End of the frames so far, in seconds."""
        return self.position / self._run_rate

    @property
    def _run_rate(self) -> int:
        assert self._run is not None
        return self._run[0]

    def _begin(self, run: tuple[int, int], time: float, out: int | None = None) -> None:
        """Begin a run at a time in seconds. It goes on at `out` if there is no gap before it."""
        self._run = run
        rate = run[0]
        # The input starts where both rates have a sample, so the output has the sample times of the whole sound.
        period = rate // math.gcd(rate, self.rate)
        self.position = self._first = round(time * rate)
        self._end = sys.maxsize
        if self.start:
            earliest = math.floor((self.start - _CONTEXT) * rate / period) * period
            self._first = max(self.position, earliest)
        if self.duration is not None:
            self._end = math.ceil((self.start + self.duration + _CONTEXT) * rate)
        self._stream = soxr.ResampleStream(rate, self.rate, run[1], dtype="float32", quality=QUALITY)
        self._begun = round(self._first * self.rate / rate) if out is None else out

    def _fill(self) -> None:
        """Put silence from the end of the result so far to the beginning of the run."""
        silence = min(self._begun, self.high) - max(self.out, self.low)
        if silence > 0:
            self._make_room(silence)
            self.kept.append(np.zeros((self._channels, silence), np.float32))
        self.out = max(self.out, self._begun)

    def _make_room(self, samples: int) -> None:
        """Count samples of the result before they take memory."""
        self._samples += samples
        most = self.max_seconds * min(self.rate, _VALUES_PER_SECOND / self._channels)
        if self._samples > most:
            raise _TooLongError(f"{self.name}: {_too_long(most / self.rate, self.max_seconds)}")

    def _keep(self, block: np.ndarray, *, last: bool = False) -> None:
        if self._run_rate != self.rate:
            block = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
        wanted = block[:, max(0, self.low - self.out) : max(0, self.high - self.out)]
        if wanted.size:
            self._make_room(wanted.shape[1])
            self.kept.append(_in_channels(wanted, self._channels).copy())
            self.heard = True
        self.out += block.shape[1]

    def _end_run(self) -> None:
        self._keep(np.empty((self._run[1] if self._run else 0, 0), np.float32), last=True)


def _rate_of(frame: Any, name: str) -> int:
    if not _MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise MediaError(f"{name}: it claims a sampling rate of {frame.sample_rate} Hz")
    return frame.sample_rate


def _in_channels(block: np.ndarray, channels: int) -> np.ndarray:
    """Samples in another number of channels: mixed, the same in each."""
    if len(block) == channels:
        return block
    return np.repeat(block.mean(axis=0, keepdims=True), channels, axis=0)


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
