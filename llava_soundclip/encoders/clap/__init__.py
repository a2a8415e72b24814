"""CLAP: the audio encoder of LAION's contrastive language-audio models."""

from llava_soundclip.encoders.clap.encoder import CLAPEncoder

__all__ = ["CLAPEncoder"]
