"""Decoding of clips' sounds and frames. It doesn't import torch, so that worker processes start quickly."""

from typing import Literal, TypeAlias

import numpy as np
from PIL.Image import Image

from llava_soundclip.clips.clip import Clip, open_media
from llava_soundclip.media import MediaError, Source, load_audio, load_audio_as_it_is, load_frame, probe
from llava_soundclip.media.files import duration_of, is_still, opened

FrameTime: TypeAlias = float | Literal["first", "middle"]  # seconds into a clip, or a name


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
    return load_sound(open_media(clip.sound), sampling_rate, clip.start, clip.end)


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
    _check(clip)
    media = clip.sound if clip.picture is None else clip.picture
    try:
        if time == "middle":
            return load_frames(open_media(media), 1, clip.start, clip.end)[0]
        seconds = (clip.start or 0.0) + (0.0 if time == "first" else time)
        return load_frame(open_media(media), time=seconds)
    except MediaError as error:
        if clip.picture is not None or probe(open_media(media)).has_video:
            raise
        raise MediaError(
            f"{error} (put a picture with the same name next to the sound, or give one: picture=, --picture)"
        ) from error


def _check(clip: Clip) -> None:
    if clip.fault is not None:
        raise MediaError(clip.fault)


def load_sound(
    source: Source, sampling_rate: int | None, start: float | None, end: float | None
) -> tuple[np.ndarray, int]:
    """Decode a sound or a part of it.

    Args:
        source: the file; see `load_audio`.
        sampling_rate: sampling rate of the result in Hz; None for the sound's own.
        start: start of the part in seconds; None for the beginning.
        end: end of the part in seconds; None for the end.

    Returns:
        (channels, samples) float32 and its sampling rate in Hz.

    Raises:
        MediaError: if there is no sound.
    """
    if sampling_rate is None:
        if start is None and end is None:
            return load_audio_as_it_is(source)
        sampling_rate = probe(source).sampling_rate
        if sampling_rate is None:
            return load_audio_as_it_is(source)  # its error says what is wrong
    begin = start or 0.0
    duration = None if end is None else end - begin
    return load_audio(source, sampling_rate=sampling_rate, start=begin, duration=duration), sampling_rate


def load_frames(source: Source, frames: int, start: float | None, end: float | None) -> list[Image]:
    """Decode evenly spaced frames of a video or a part of it: the middle frame of each of `frames` equal parts.

    Args:
        source: a video or a still picture. A still picture is returned once, for any `frames`.
        frames: number of frames.
        start: start of the part in seconds; None for the beginning.
        end: end of the part in seconds; None for the end.

    Returns:
        RGB pictures.

    Raises:
        MediaError: if there are no pictures, or neither the file nor `end` gives a length.
    """
    if frames == 1 and start is None and end is None:
        return [load_frame(source)]
    with opened(source) as (container, name):
        still, duration = is_still(container), duration_of(container)
    if still:
        return [load_frame(source)]
    if end is None and duration is None:
        raise MediaError(f"{name}: it doesn't say its length, so frames can't be spaced evenly: give its end")
    begin = start or 0.0
    stop = min(seconds for seconds in (end, duration) if seconds is not None)
    return [
        load_frame(source, time=begin + (i + 0.5) * max(0.0, stop - begin) / frames) for i in range(frames)
    ]
