"""ImageBind's audio encoder."""

from llava_soundclip.encoders.imagebind.encoder import ImageBindEncoder

__all__ = ["ImageBindEncoder"]
