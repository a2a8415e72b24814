"""AudioCLIP's audio side, ESResNeXt-fbsp."""

from llava_soundclip.encoders.audioclip.encoder import AudioCLIPEncoder

__all__ = ["AudioCLIPEncoder"]
