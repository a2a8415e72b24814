"""Decoding of files to waveforms and pictures, with PyAV as the only decoder. Knows no model."""

from llava_soundclip.media.files import MediaError, MediaInfo, Source, probe
from llava_soundclip.media.pictures import load_frame
from llava_soundclip.media.sounds import load_audio, load_audio_as_it_is
from llava_soundclip.media.waveforms import check_waveform, resample

__all__ = [
    "MediaError",
    "MediaInfo",
    "Source",
    "check_waveform",
    "load_audio",
    "load_audio_as_it_is",
    "load_frame",
    "probe",
    "resample",
]
