"""Whisper and WhisperCLIP: `encoder.py` is the way through; the other files read checkpoints and make the input."""

from llava_soundclip.encoders.whisper.encoder import WhisperCLIPEncoder, WhisperEncoder

__all__ = ["WhisperCLIPEncoder", "WhisperEncoder"]
