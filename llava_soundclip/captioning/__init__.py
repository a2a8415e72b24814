"""Captions of many clips: the loop, its options and settings, and the reader and writer of its rows."""

from llava_soundclip.captioning.many import Captioned, caption_clips, next_clips
from llava_soundclip.captioning.rows import Caption, CaptionFile, read_captions
from llava_soundclip.captioning.settings import CaptionOptions, Setting

__all__ = [
    "Caption",
    "CaptionFile",
    "CaptionOptions",
    "Captioned",
    "Setting",
    "caption_clips",
    "next_clips",
    "read_captions",
]
