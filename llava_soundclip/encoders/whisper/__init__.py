"""Whisper and WhisperCLIP. `encoder.py` is the main file; the others read checkpoints and compute the input."""

from llava_soundclip.encoders.whisper.encoder import WhisperCLIPEncoder, WhisperEncoder

__all__ = ["WhisperCLIPEncoder", "WhisperEncoder"]
