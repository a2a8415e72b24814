"""SoundCLIP as a plugin: let a LLaVA hear by putting sound in place of vision tokens.

    from llava_soundclip import patch

    soundclip = patch(model, encoder="whisperclip")
    with soundclip.audio("clip.wav"):
        model.generate(**inputs)

The public names load on first use (PEP 562), so importing the package imports neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_soundclip._version import __version__

if TYPE_CHECKING:
    from llava_soundclip.alignment import Mix, RawPad
    from llava_soundclip.alignment.projector import Projector
    from llava_soundclip.encoders import AudioEncoder, available_encoders, load_encoder, register_encoder
    from llava_soundclip.hosts import supported_models
    from llava_soundclip.loading import load_demo
    from llava_soundclip.media import MediaError
    from llava_soundclip.patching import SoundCLIP, patch, unpatch
    from llava_soundclip.substitution import AudioTokenSubstituter

__all__ = [
    "AudioEncoder",
    "AudioTokenSubstituter",
    "MediaError",
    "Mix",
    "Projector",
    "RawPad",
    "SoundCLIP",
    "__version__",
    "available_encoders",
    "load_demo",
    "load_encoder",
    "patch",
    "register_encoder",
    "supported_models",
    "unpatch",
]

_HOME = {
    "AudioEncoder": "encoders",
    "AudioTokenSubstituter": "substitution",
    "MediaError": "media",
    "Mix": "alignment",
    "Projector": "alignment.projector",
    "RawPad": "alignment",
    "SoundCLIP": "patching",
    "available_encoders": "encoders",
    "load_demo": "loading",
    "load_encoder": "encoders",
    "patch": "patching",
    "register_encoder": "encoders",
    "supported_models": "hosts",
    "unpatch": "patching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
