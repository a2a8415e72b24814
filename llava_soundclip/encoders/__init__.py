"""Audio encoders by name. The table holds strings, so listing the names imports nothing."""

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
    """Names for `load_encoder` and `patch`: built-in encoders, registered encoders and entry points."""
    return sorted({*_ENCODERS, *(point.name for point in entry_points(group=_GROUP))})


def register_encoder(name: str, target: str | type[AudioEncoder]) -> None:
    """Register an encoder of your own under a name.

    Args:
        name: value that users pass as `encoder=`.
        target: an `AudioEncoder` subclass, or "package.module:Class", imported on first use.

    Raises:
        ValueError: if the name is taken.
    """
    if name in available_encoders():
        raise ValueError(f"an encoder named {name!r} is registered already; known: {available_encoders()}")
    _ENCODERS[name] = target


def encoder_class(name: str) -> type[AudioEncoder]:
    """Import the class behind a name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
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
        **options: options of the encoder, such as `checkpoint=`, `backend=`, `device=`, `dtype=`.

    Returns:
        The encoder.

    Raises:
        ValueError: for an unknown name, a checkpoint of another encoder, or weights that aren't finite.
        ImportError: if an optional package is missing; the message has the pip line.
    """
    encoder = encoder_class(name).load(**options)
    broken = [
        part
        for part, weight in encoder.named_parameters()
        if not weight.is_meta and not weight.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"the weights of {name} hold NaN or infinity in {len(broken)} tensors, such as {broken[0]}: the file "
            "is damaged, or its numbers are too large for the precision"
        )
    return encoder.eval().requires_grad_(False)
