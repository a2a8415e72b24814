"""AudioCLIP's audio encoder, ESResNeXt-fbsp."""

from llava_soundclip.encoders.audioclip.encoder import AudioCLIPEncoder

__all__ = ["AudioCLIPEncoder"]
