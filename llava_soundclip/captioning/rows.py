"""Rows of captions: written batch by batch so that a run can resume, and read for scores and reports."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llava_soundclip.captioning.lines import clip_of, raise_for, rows_of

OPTIONS = (
    "encoder",
    "alignment",
    "k",
    "tokens",
    "control",
    "model",
)  # fields of a row that say how it was made
ONLY_SETTING = "captions"  # the setting of a file that names none


class CaptionFile:
    """A JSON Lines file of captions, one row per clip and setting, written batch by batch.

    An interrupted run may leave an incomplete last row, which is removed.

    Args:
        path: the file.
        setting: the name of this run's setting in its rows; rows of other settings don't count as done.

    Raises:
        ValueError: if a whole line isn't a row; such a file isn't changed.
    """

    def __init__(self, path: Path, setting: str | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole, newline, rest = content.rpartition(b"\n")
        rows = [_row_of(line) for line in whole.split(b"\n")] if newline else []
        if None in rows:
            raise ValueError(f"line {rows.index(None) + 1} of {path} isn't a row of captions")
        if rest:
            rows.append(_row_of(rest))
            with open(path, "r+b") as file:
                if rows[-1] is None:
                    file.truncate(len(content) - len(rest))
                else:  # only its line end is missing
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
        self._done = {os.path.abspath(row[0]) for row in rows if row is not None and row[1] == setting}

    def __contains__(self, clip: str) -> bool:
        return os.path.abspath(clip) in self._done

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to the file."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)


@dataclass(frozen=True)
class Caption:
    """A clip's caption in one setting.

    Attributes:
        id: the clip's id, the same in every setting and in the references.
        text: the caption. An empty one is scored as empty.
        setting: name of the setting, such as "raw".
        image: path of the clip's picture or video, for CLIPScore.
        heard: id of the clip whose sound was played instead of its own.
        is_deaf: whether noise or a zero vector was heard instead of a clip's sound.
    """

    id: str
    text: str
    setting: str = ONLY_SETTING
    image: Path | None = None
    heard: str | None = None
    is_deaf: bool = False

    @property
    def played(self) -> str | None:
        """Id of the clip whose sound was played; None if no sound was."""
        return None if self.is_deaf else self.heard or self.id


def read_captions(file: str | PathLike[str]) -> list[Caption]:
    """Read captions, one per row.

    Rows are {"id": ..., "caption": ..., "setting": ..., "image": ...}; the last two are optional. The output of
    `llava-soundclip caption --out` is also read: there "clip" is the id, and "heard" the clip whose sound was played
    instead. A setting without a name is named by its options, such as "clap-raw-150tk" or
    "clap-raw-150tk-drop-noise". Other fields are ignored.

    Args:
        file: JSON Lines. Paths of pictures are relative to its folder.

    Raises:
        ValueError: if rows lack a field or name a clip twice in one setting, or if only some have a setting. The
            message names the lines.
        OSError: if the file can't be read.
    """
    captions: list[Caption] = []
    faults: list[str] = []
    first_seen: dict[tuple[str, str], int] = {}
    unnamed: list[int] = []
    for line, row in rows_of(file, faults):
        clip, text = clip_of(row), row.get("caption")
        if clip is None:
            faults.append(f'line {line} has no "id"')
        elif not isinstance(text, str):
            faults.append(f'line {line} has no "caption"')
        else:
            setting = _setting_of(row)
            if setting is None:
                unnamed.append(line)
            caption = Caption(
                clip,
                text,
                setting or ONLY_SETTING,
                _picture_of(row, Path(file).parent),
                None if row.get("heard") is None else str(row["heard"]),
                row.get("control") in ("noise", "zero"),
            )
            before = first_seen.setdefault((caption.setting, caption.id), line)
            if before != line:
                faults.append(
                    f"line {line} captions {clip!r} in {caption.setting!r} again, after line {before}"
                )
            captions.append(caption)
    if 0 < len(unnamed) < len(captions):
        faults += [f'line {line} has no "setting", other lines have one' for line in unnamed]
    if not captions and not faults:
        faults.append("it is empty")
    raise_for(file, faults)
    return captions


def read_rows(file: str | PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file that `read_captions` takes, with all their fields."""
    return [row for _, row in rows_of(file, [])]


def _setting_of(row: dict[str, Any]) -> str | None:
    if row.get("setting") not in (None, ""):
        return str(row["setting"])
    if {"encoder", "alignment", "k"} <= row.keys():
        others = ("drop" if row.get("tokens") == "drop" else None, row.get("control"))
        parts = (row["encoder"], row["alignment"], f"{row['k']}tk", *others)
        return "-".join(str(part) for part in parts if part is not None)
    return None


def _picture_of(row: dict[str, Any], folder: Path) -> Path | None:
    return folder / row["image"] if isinstance(row.get("image"), str) and row["image"] else None


def _row_of(line: bytes) -> tuple[str, str | None] | None:
    """The clip and the setting of a row; None if the line isn't a row."""
    try:
        row = json.loads(line)
        return str(row["clip"]), row.get("setting")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
