"""Finding media files by name, in folders, and by patterns."""

import glob
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

# Suffixes of media in folders. A file that is named directly may have any suffix.
_VIDEOS = "mp4 m4v mov mkv webm avi flv wmv mpg mpeg ts mts m2ts 3gp ogv gif"
_SOUNDS = "wav mp3 m4a aac flac ogg oga opus wma aif aiff ac3 amr caf mka"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _VIDEOS.split())
SOUND_SUFFIXES = frozenset(f".{suffix}" for suffix in _SOUNDS.split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | SOUND_SUFFIXES
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Names: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]  # one name or several


def as_names(names: Names) -> list[str]:
    """One name or several, as a list of strings."""
    several = [names] if isinstance(names, str | os.PathLike) else names
    return [os.fspath(name) for name in several]


def find_clips(names: Names) -> list[str]:
    """Find media files: named files, all media files in and below folders, and the matches of patterns.

    Each file is listed once. A name that matches nothing stays in the list, so that it is reported as a bad clip.
    """
    clips: dict[str, str] = {}
    for name in as_names(names):
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)) or [name]
        for match in map(Path, matches):
            for path in sorted(match.rglob("*")) if match.is_dir() else [match]:
                wanted = path is match or path.suffix.lower() in MEDIA_SUFFIXES
                if wanted and not path.is_dir():
                    clips.setdefault(os.path.abspath(path), str(path))
    return list(clips.values())


def file_name(name: str) -> str:
    """A clip's path or id as a file name, with a checksum that distinguishes "a/b" from "a_b"."""
    readable = re.sub(r"[^\w.-]+", "_", os.path.basename(name))[-80:]
    return f"{readable}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def picture_beside(path: str) -> str | None:
    """The picture next to a sound file with the same name, if there is one."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in SOUND_SUFFIXES:
        return None
    return next((stem + picture for picture in PICTURE_SUFFIXES if os.path.exists(stem + picture)), None)
