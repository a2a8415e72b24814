"""Many clips: found, worked on in batches, their captions kept in a file that a stopped run goes on with."""

import glob
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# What is taken out of a folder; a file named by itself may end as it likes.
_FILMS = "mp4 m4v mov mkv webm avi flv wmv mpg mpeg ts mts m2ts 3gp ogv gif"
_SOUNDS = "wav mp3 m4a aac flac ogg oga opus wma aif aiff ac3 amr caf mka"
FILM_SUFFIXES = frozenset(f".{suffix}" for suffix in _FILMS.split())
MEDIA_SUFFIXES = FILM_SUFFIXES | {f".{suffix}" for suffix in _SOUNDS.split()}


def find_clips(names: Iterable[str]) -> list[str]:
    """Files, the media files of folders and all that is below them, and what patterns match; each once.

    What matches nothing stays in the list, so that it is reported as the bad clip that it is.
    """
    clips: dict[str, str] = {}
    for name in names:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)) or [name]
        for match in map(Path, matches):
            for path in sorted(match.rglob("*")) if match.is_dir() else [match]:
                wanted = path is match or path.suffix.lower() in MEDIA_SUFFIXES
                if wanted and not path.is_dir():
                    clips.setdefault(os.path.abspath(path), str(path))
    return list(clips.values())


def file_name(name: str) -> str:
    """A clip's path or id as the name of one file, with a few digits that tell "a/b" from "a_b"."""
    readable = re.sub(r"[^\w.-]+", "_", os.path.basename(name))[-80:]
    return f"{readable}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


class CaptionFile:
    """A JSON Lines file of captions, one row a clip and setting, added to batch by batch.

    A run may end at any moment: of a row that was half written then, the half is taken away.

    Args:
        path: the file.
        setting: what its rows call what this run does; rows of other settings are another's.

    Raises:
        ValueError: if a whole line is no row; such a file isn't touched.
    """

    def __init__(self, path: Path, setting: str | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole, newline, rest = content.rpartition(b"\n")
        rows = [_row_of(line) for line in whole.split(b"\n")] if newline else []
        if None in rows:
            raise ValueError(f"line {rows.index(None) + 1} of {path} is no row of captions")
        if rest:
            rows.append(_row_of(rest))
            with open(path, "r+b") as file:
                if rows[-1] is None:
                    file.truncate(len(content) - len(rest))
                else:  # whole but for its end of line
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
        self._done = {os.path.abspath(row[0]) for row in rows if row is not None and row[1] == setting}

    def __contains__(self, clip: str) -> bool:
        return os.path.abspath(clip) in self._done

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, through to the file system."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _row_of(line: bytes) -> tuple[str, str | None] | None:
    """The clip and the setting of a row, None if the line isn't a row."""
    try:
        row = json.loads(line)
        return str(row["clip"]), row.get("setting")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
