"""Decoding of clips' sounds and frames. It doesn't import torch, so that worker processes start quickly."""

from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from PIL.Image import Image

from llava_soundclip.clips.clip import Clip, open_media
from llava_soundclip.media import (
    MAX_SECONDS,
    MediaError,
    Source,
    load_audio,
    load_audio_as_it_is,
    load_frame,
    load_frames,
    probe,
)

FrameTime: TypeAlias = float | Literal["first", "middle"]  # seconds into a clip, or a name
T = TypeVar("T")

_ADVICE = "put a picture with the same name next to the sound"


def sound_of(clip: Clip, sampling_rate: int | None) -> tuple[np.ndarray, int]:
    """Decode a clip's sound.

    Args:
        clip: the clip. A clip of a dataset must be fetched before.
        sampling_rate: sampling rate of the result in Hz; None for the sound's own.

    Returns:
        (channels, samples) float32 and its sampling rate in Hz.

    Raises:
        MediaError: if there is no sound, or the clip has a fault.
    """
    _check(clip)
    return load_sound(
        open_media(clip.sound),
        sampling_rate,
        clip.start,
        clip.end,
        track=clip.track,
        max_seconds=clip.max_seconds,
    )


def frame_of(clip: Clip, time: FrameTime = "middle") -> Image:
    """Decode the picture that is shown with a clip: its own, or a frame of its video.

    Args:
        clip: the clip. A clip of a dataset must be fetched before.
        time: "middle", "first", or seconds after the clip's start.

    Returns:
        An RGB picture.

    Raises:
        MediaError: if there is no picture, or the clip has a fault.
    """

    def decode(source: Source) -> Image:
        if time == "middle":
            return load_frames(source, 1, clip.start, clip.end, max_pixels=clip.max_pixels)[0]
        at = (clip.start or 0.0) + (0.0 if time == "first" else time)
        return load_frame(source, time=at, max_pixels=clip.max_pixels)

    return _pictured(clip, decode, f"{_ADVICE}, or give picture=")


def frames_of(clip: Clip, count: int) -> list[Image]:
    """Decode evenly spaced frames of a clip, as `load_frames` does. A still picture is returned once.

    Raises:
        MediaError: as in `frame_of`.
    """

    def decode(source: Source) -> list[Image]:
        return load_frames(source, count, clip.start, clip.end, max_pixels=clip.max_pixels)

    return _pictured(clip, decode, _ADVICE)


def _pictured(clip: Clip, decode: Callable[[Source], T], advice: str) -> T:
    """Decode a clip's pictures. The error of a sound without a picture ends with advice."""
    _check(clip)
    source = open_media(clip.sound if clip.picture is None else clip.picture)
    try:
        return decode(source)
    except MediaError as error:
        if clip.picture is not None or probe(source).has_video:
            raise
        raise MediaError(f"{error} ({advice})") from error


def _check(clip: Clip) -> None:
    if clip.fault is not None:
        raise MediaError(clip.fault)


def load_sound(
    source: Source,
    sampling_rate: int | None,
    start: float | None,
    end: float | None,
    *,
    track: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> tuple[np.ndarray, int]:
    """Decode a sound or a part of it.

    Args:
        source: the file; see `load_audio`.
        sampling_rate: sampling rate of the result in Hz; None for the sound's own.
        start: start of the part in seconds; None for the beginning.
        end: end of the part in seconds; None for the end.
        track: number of the sound track, counted from 0; None for the best one that can be decoded.
        max_seconds: length above which it is refused.

    Returns:
        (channels, samples) float32 and its sampling rate in Hz.

    Raises:
        MediaError: if there is no sound.
    """
    begin = start or 0.0
    duration = None if end is None else end - begin
    if sampling_rate is None:
        return load_audio_as_it_is(
            source, start=begin, duration=duration, track=track, max_seconds=max_seconds
        )
    waveform = load_audio(
        source,
        sampling_rate=sampling_rate,
        start=begin,
        duration=duration,
        track=track,
        max_seconds=max_seconds,
    )
    return waveform, sampling_rate
