"""Audio encoders: a table of names, so that listing them costs nothing."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from llava_soundclip.encoders.base import AudioEncoder, Waveform

__all__ = ["AudioEncoder", "Waveform", "available_encoders", "load_encoder", "register_encoder"]

_GROUP = "llava_soundclip.encoders"  # entry points of other packages

_ENCODERS: dict[str, str | type[AudioEncoder]] = {
    "audioclip": "llava_soundclip.encoders.audioclip:AudioCLIPEncoder",
    "clap": "llava_soundclip.encoders.clap:CLAPEncoder",
    "imagebind": "llava_soundclip.encoders.imagebind:ImageBindEncoder",
    "wav2clip": "llava_soundclip.encoders.wav2clip:Wav2CLIPEncoder",
    "whisper": "llava_soundclip.encoders.whisper:WhisperEncoder",
    "whisperclip": "llava_soundclip.encoders.whisper:WhisperCLIPEncoder",
}


def available_encoders() -> list[str]:
    """Names that `load_encoder` and `patch` take: the built-in ones, registered ones and entry points."""
    return sorted({*_ENCODERS, *(point.name for point in entry_points(group=_GROUP))})


def register_encoder(name: str, target: str | type[AudioEncoder]) -> None:
    """Make an encoder of your own known by name.

    Args:
        name: what users pass as `encoder=`.
        target: an `AudioEncoder` subclass, or "package.module:Class", imported when it is asked for.

    Raises:
        ValueError: if the name is taken.
    """
    if name in available_encoders():
        raise ValueError(f"an encoder named {name!r} is registered already; known: {available_encoders()}")
    _ENCODERS[name] = target


def encoder_class(name: str) -> type[AudioEncoder]:
    """The class behind a name, imported now.

    Raises:
        ValueError: for an unknown name; the known ones are listed.
    """
    target = _ENCODERS.get(name)
    if target is None:
        for point in entry_points(group=_GROUP):
            if point.name == name:
                return point.load()
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join(available_encoders())}")
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    return target


def load_encoder(name: str, **options: Any) -> AudioEncoder:
    """Load an audio encoder by name, in evaluation mode and without gradients.

    Args:
        name: one of `available_encoders()`.
        **options: the encoder's own, such as `checkpoint=`, `backend=`, `device=`, `dtype=`.

    Raises:
        ValueError: for an unknown name, or a checkpoint that isn't the encoder's.
        ImportError: if an optional package is missing; the message has the pip line.
    """
    encoder = encoder_class(name).load(**options)
    return encoder.eval().requires_grad_(False)
