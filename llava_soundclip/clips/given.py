"""Sounds and pictures that a user passes: files, bytes or arrays, single or in a list."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from llava_soundclip.clips.load import FrameTime
from llava_soundclip.media import MediaError, load_audio, load_audio_as_it_is, load_frame, probe


def as_list(sounds: Any) -> list[Any]:
    """One sound or several, as a list."""
    return list(sounds) if isinstance(sounds, list | tuple) else [sounds]


def as_waveforms(
    sounds: Any, sampling_rate: int | Sequence[int] | None, decoding_rate: int | None
) -> tuple[list[np.ndarray | Tensor], int | Sequence[int]]:
    """Decode files, and check that arrays come with their sampling rate.

    Args:
        sounds: a sound or a list of sounds; each is a path, bytes, a binary file, an array or a tensor.
        sampling_rate: sampling rate of arrays and tensors in Hz, or a list with one per sound.
        decoding_rate: sampling rate in Hz at which files are decoded; None for each file's own.

    Returns:
        The arguments of `AudioEncoder.embed`: the waveforms, and their rate or list of rates in Hz.

    Raises:
        MediaError: if a file can't be decoded.
        TypeError: for an object that isn't a sound.
        ValueError: for arrays without `sampling_rate`, a mix of arrays and files, or an empty list.
    """
    items = as_list(sounds)
    if not items:
        raise ValueError("an empty list of sounds: give one sound per image")
    arrays = [_is_array(item) for item in items]
    if all(arrays):
        if sampling_rate is None:
            raise ValueError("a sound given as an array needs sampling_rate= in Hz")
        return items, sampling_rate
    if any(arrays):
        raise ValueError("give sounds as files or as arrays, not both in one list")
    for item in items:
        if not (isinstance(item, str | PathLike | bytes | bytearray) or hasattr(item, "read")):
            raise TypeError(
                f"a sound is a path, bytes, a binary file, an array or a tensor, not {type(item).__name__}"
            )
    if decoding_rate is None:
        decoded = [load_audio_as_it_is(item) for item in items]
        return [waveform for waveform, _ in decoded], [rate for _, rate in decoded]
    return [load_audio(item, sampling_rate=decoding_rate) for item in items], decoding_rate


def pictures_for(sources: Sequence[Any], picture: Any, frame: FrameTime) -> list[Image]:
    """Decode the picture that is shown with each sound.

    Args:
        sources: videos or sounds.
        picture: one picture for all, a list with one per sound, or None for each video's own frame.
        frame: the frame of a video to use: "middle", "first" or its time in seconds.

    Returns:
        One RGB picture per sound.

    Raises:
        MediaError: if a picture can't be decoded, or a sound file has no picture.
        ValueError: if a list's length differs, or an array has no picture.
    """
    pictures = list(picture) if isinstance(picture, list | tuple) else [picture] * len(sources)
    if len(pictures) != len(sources):
        raise ValueError(f"{len(pictures)} pictures for {len(sources)} sounds: give one, or one per sound")
    return [_picture(*pair, frame) for pair in zip(sources, pictures, strict=True)]


def _picture(source: Any, picture: Any, frame: FrameTime) -> Image:
    if picture is not None:
        return load_frame(picture, time=frame)
    if _is_array(source):
        raise ValueError("a sound given as an array has no picture of its own: give picture=")
    try:
        return load_frame(source, time=frame)
    except MediaError as error:
        if probe(source).has_video:
            raise
        raise MediaError(f"{error} (a sound alone needs picture=)") from error


def _is_array(sound: Any) -> bool:
    return isinstance(sound, np.ndarray | Tensor)
