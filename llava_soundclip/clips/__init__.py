"""Clips: finding them in files, folders, tables, tars and datasets, and decoding them. Knows no model.

Only `clips.given` imports torch, so worker processes decode without it.
"""

from llava_soundclip.clips.clip import Clip, known_fault, open_media
from llava_soundclip.clips.datasets import read_dataset
from llava_soundclip.clips.find import Names, find_clips
from llava_soundclip.clips.load import FrameTime, frame_of, frames_of, load_sound, sound_of
from llava_soundclip.clips.read import as_clips, read_clips
from llava_soundclip.clips.tables import AVE2, FORMATS, Columns

__all__ = [
    "AVE2",
    "FORMATS",
    "Clip",
    "Columns",
    "FrameTime",
    "Names",
    "as_clips",
    "find_clips",
    "frame_of",
    "frames_of",
    "known_fault",
    "load_sound",
    "open_media",
    "read_clips",
    "read_dataset",
    "sound_of",
]
