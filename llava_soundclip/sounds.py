"""What a user may hand over as a sound, made into waveforms."""

from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from llava_soundclip.encoders.base import AudioEncoder, Waveform
from llava_soundclip.media import load_audio, load_audio_as_it_is


def is_array(sound: Any) -> bool:
    """Whether a sound is a waveform already, not a file."""
    return isinstance(sound, np.ndarray | Tensor)


def as_list(sounds: Any) -> list[Any]:
    """One sound or several, as a list."""
    return list(sounds) if isinstance(sounds, list | tuple) else [sounds]


def as_waveforms(
    sounds: Any, sampling_rate: int | None, encoder: AudioEncoder
) -> tuple[list[Waveform], int | list[int]]:
    """Decode files, and see that arrays come with their rate.

    Args:
        sounds: one sound or a list: a path, bytes, a binary file, or an array or tensor.
        sampling_rate: Hz of arrays and tensors.
        encoder: files are decoded at its rate, or at their own if it resamples itself.

    Returns:
        What `encoder.embed` takes: the waveforms and their rate in Hz, or each one's.

    Raises:
        MediaError: if a file can't be decoded.
        TypeError: for something that isn't a sound.
        ValueError: for arrays without `sampling_rate`, arrays mixed with files, or no sound at all.
    """
    items = as_list(sounds)
    if not items:
        raise ValueError("an empty list of sounds: give one sound an image")
    arrays = [is_array(item) for item in items]
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
    if encoder.resamples:
        decoded = [load_audio_as_it_is(item) for item in items]
        return [waveform for waveform, _ in decoded], [rate for _, rate in decoded]
    rate = encoder.sampling_rate
    return [load_audio(item, sampling_rate=rate) for item in items], rate
