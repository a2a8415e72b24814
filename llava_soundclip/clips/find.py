"""Finding media files by name, in folders, and by patterns."""

import fnmatch
import glob
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from llava_soundclip._text import as_unicode

# Suffixes of media in folders. A file that is named directly may have any suffix. FFmpeg's own lists lack some (mts, vob)
# and hold others that are mostly something else (txt, dat, art).
_VIDEOS = """3g2 3gp 3gpp amv asf avi avc divx dv dvr-ms evo f4v flv gif h264 h265 264 265 hevc ivf m1v m2t m2ts m2v m4v
    mjpeg mjpg mk3d mkv mod mov mp4 mpe mpeg mpg mpv mts mxf nsv nut ogm ogv ogx qt rm rmvb tod ts vob webm wmv wtv y4m"""
_SOUNDS = """aa3 aac ac3 adts aif aifc aiff alac amr ape au awb bwf caf dff dsf dts dtshd eac3 ec3 flac gsm m4a m4b m4r
    mka mlp mp1 mp2 mp3 mpa mpc mpga nist oga ogg oma opus ra rf64 shn snd sph spx tak thd tta voc w64 wav wave wma wv"""
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _VIDEOS.split())
SOUND_SUFFIXES = frozenset(f".{suffix}" for suffix in _SOUNDS.split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | SOUND_SUFFIXES
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jfif", ".tif", ".tiff", ".avif")

Names: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]  # one name or several


def as_names(names: Names) -> list[str]:
    """One name or several, as a list of strings."""
    several = [names] if isinstance(names, str | os.PathLike) else names
    return [os.fspath(name) for name in several]


def find_clips(names: Names) -> list[str]:
    """Find media files: named files, all media files in and below folders, and the matches of patterns.

    Linked folders count. Each file is listed once, also if links lead to it on several ways. A name that matches
    nothing stays in the list, so that it is reported as a bad clip; so does a folder that can't be listed.
    """
    clips: dict[str, str] = {}
    for name in as_names(names):
        for match in [name] if os.path.exists(name) else _matches(name) or [name]:
            for path in _in_folder(match) if os.path.isdir(match) else [Path(match)]:
                clips.setdefault(place_of(path), str(path))
    return list(clips.values())


def place_of(path: Path) -> str:
    """A path that is the same on any way to a file. A link to a file is a file of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _in_folder(folder: str) -> list[Path]:
    """The media files in and below a folder, and the folders that can't be listed."""
    found = [
        Path(path)
        for path, is_folder in _below(folder)
        if is_folder is None or (not is_folder and Path(path).suffix.lower() in MEDIA_SUFFIXES)
    ]
    return sorted(found)


def _below(folder: str) -> Iterator[tuple[str, bool | None]]:
    """Paths below a folder, each with whether it is a folder; None for a folder that can't be listed.

    Each folder is listed once, if possible at its own place rather than through a link, so links can't lead in circles.
    """
    seen: set[str] = set()
    real, linked = [folder], list[str]()
    while real or linked:
        here = real.pop() if real else linked.pop(0)
        place = os.path.realpath(here)
        if place in seen:
            continue
        seen.add(place)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            yield here, None
            continue
        for entry in entries:
            is_folder = _is_folder(entry)
            yield entry.path, is_folder
            if is_folder:
                (linked if entry.is_symlink() else real).append(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(pattern: str) -> list[str]:
    """The files and folders that match a pattern.

    For "**", `glob` would follow links in circles; here each folder comes once.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = os.path.join("", *parts[:first])
    everything = parts[-1] == "**"  # so the files below a folder match themselves
    below = (
        os.path.relpath(path, base or ".")
        for path, is_folder in _below(base or ".")
        if not (everything and is_folder)
    )
    return sorted(os.path.join(base, path) for path in below if _fits(path.split(os.sep), parts[first:]))


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern. "**" matches any number of folders, "*" no hidden name."""
    if not parts:
        return not names
    if parts[0] == "**":
        if _fits(names, parts[1:]):
            return True
        return bool(names) and not names[0].startswith(".") and _fits(names[1:], parts)
    if not names or (names[0].startswith(".") and not parts[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def file_name(name: str) -> str:
    """A clip's path or id as a file name, with a checksum that distinguishes "a/b" from "a_b"."""
    readable = re.sub(r"[^\w.-]+", "_", as_unicode(os.path.basename(name)))[-80:]
    return f"{readable}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def picture_beside(path: str) -> str | None:
    """The picture next to a sound file with the same name, if there is one. Its suffix may be in capitals."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in SOUND_SUFFIXES:
        return None
    written = (change(picture) for picture in PICTURE_SUFFIXES for change in (str, str.upper))
    return next((stem + picture for picture in written if os.path.isfile(stem + picture)), None)
