"""Decoding of files to waveforms and pictures, by PyAV; Pillow decodes animated WebP. Knows no model."""

from llava_soundclip.media.files import (
    MAX_PIXELS,
    MAX_SECONDS,
    MediaError,
    MediaInfo,
    MediaWarning,
    Source,
    probe,
)
from llava_soundclip.media.pictures import load_frame, load_frames
from llava_soundclip.media.sounds import load_audio, load_audio_as_it_is
from llava_soundclip.media.waveforms import check_waveform, resample

__all__ = [
    "MAX_PIXELS",
    "MAX_SECONDS",
    "MediaError",
    "MediaInfo",
    "MediaWarning",
    "Source",
    "check_waveform",
    "load_audio",
    "load_audio_as_it_is",
    "load_frame",
    "load_frames",
    "probe",
    "resample",
]
