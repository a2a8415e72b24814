"""Rows of captions: written batch by batch so that a run can resume, and read for scores and reports."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from llava_soundclip.captioning.lines import clip_of, raise_for, rows_of
from llava_soundclip.files import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OPTIONS = (
    "encoder",
    "alignment",
    "k",
    "tokens",
    "control",
    "model",
)  # fields of a row that say how it was made
ROW_OPTIONS = "options"  # field with a fingerprint of all other options
ONLY_SETTING = "captions"  # the setting of a file that names none

_NAMING = {"encoder", "alignment", "k"}  # fields of the name of a setting that has none
_OTHER_OPTIONS = "another prompt, length, frame, norm, picture or other weights"


class CaptionFile:
    """A JSON Lines file of captions, one row per clip and setting, written batch by batch.

    Several runs may write into one file: a clip gets one row per setting, from whichever run is first. An interrupted
    run may leave an incomplete last row, which is removed.

    Args:
        path: the file.
        setting: the name of this run's setting in its rows; rows of other settings don't count as done.
        made_with: fields of this run's rows that say how captions are made. Rows without a setting's name that differ
            in a field of the name that `read_captions` gives them are of another setting. None: not compared.

    Raises:
        ValueError: if a whole line isn't a row, or the setting's rows were made with other options. The file isn't
            changed.
    """

    def __init__(
        self, path: Path, setting: str | None = None, made_with: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._setting = setting
        self._made_with = made_with
        self._done: set[str] = set()
        self._place: tuple[int, int] | None = None  # of the file on the disk, once there is one
        self._size = 0  # bytes that were read or written
        self._lines = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with self._opened() as file:
                self._catch_up(file)

    def __contains__(self, clip: str) -> bool:
        return os.path.abspath(clip) in self._done

    def refresh(self) -> None:
        """Read the rows that other runs have added since the last call.

        Raises:
            OSError: if the file was removed or replaced.
        """
        if self._place is not None or self.path.exists():
            with self._opened() as file:
                self._catch_up(file)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to the file, unless another run has added rows of these clips.

        Raises:
            OSError: if the file can't be written, or was removed or replaced. It then has none of these rows.
        """
        with self._opened() as file:
            self._catch_up(file)
            new = [row for row in rows if row["clip"] not in self]
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            try:
                file.write(content.encode("utf-8", "backslashreplace"))
                file.flush()
            except OSError as error:
                with suppress(OSError):  # as the file is closed, it would write the rest again
                    file.close()
                os.truncate(self.path, self._size)
                raise OSError(error.errno, error.strerror, os.fspath(self.path)) from error
            self._catch_up(file)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, locked: no other run writes meanwhile."""
        if self._place is not None and not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, "it was removed during the run", os.fspath(self.path))
        with open(self.path, "a+b") as file:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            state = os.fstat(file.fileno())
            place = state.st_dev, state.st_ino
            if self._place not in (None, place) or state.st_size < self._size:
                raise OSError(errno.ESTALE, "it was replaced during the run", os.fspath(self.path))
            self._place = place
            yield file

    def _catch_up(self, file: BinaryIO) -> None:
        """Read the rows from where the last call ended. What a killed run left of a row is removed."""
        file.seek(self._size)
        content = file.read()
        whole, newline, rest = content.rpartition(b"\n")
        rows = [_row_of(line) for line in whole.split(b"\n")] if newline else []
        if None in rows:
            number = self._lines + rows.index(None) + 1
            raise ValueError(f"line {number} of {self.path} isn't a row of captions")
        last = _row_of(rest) if rest else None
        found = [row for row in (*rows, last) if row is not None]
        for row in found:
            self._check(row)
        if last is not None:  # only its line end is missing
            file.write(b"\n")
            file.flush()
        elif rest:
            file.truncate(self._size + len(content) - len(rest))
        self._size = file.seek(0, os.SEEK_END)
        self._lines += len(found)
        self._done |= {os.path.abspath(str(row["clip"])) for row in found if self._is_mine(row)}

    def _is_mine(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this run's setting."""
        if row.get("setting") != self._setting:
            return False
        if self._setting is not None or self._made_with is None or not _NAMING <= row.keys():
            return True
        return _setting_of(row) == _setting_of(self._made_with)

    def _check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row of this setting that was made with other options: it isn't a caption of this run."""
        if self._made_with is None or not self._is_mine(row):
            return
        if "encoder" not in row:  # made by another program
            return
        other = [
            name
            for name in (*OPTIONS, ROW_OPTIONS)
            if row.get(name) != self._made_with.get(name)
            and (name == "control" or (name in row and name in self._made_with))
        ]
        if other:
            named = [
                _OTHER_OPTIONS
                if name == ROW_OPTIONS
                else f"{name} {row.get(name)}, not {self._made_with.get(name)}"
                for name in other
            ]
            whose = f"setting {self._setting!r}" if self._setting else "these clips"
            raise ValueError(
                f"{self.path} holds captions of {whose} made with {'; '.join(named)}: give another file, or another setting"
            )


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


def _setting_of(row: Mapping[str, Any]) -> str | None:
    if row.get("setting") not in (None, ""):
        return str(row["setting"])
    if _NAMING <= row.keys():
        others = ("drop" if row.get("tokens") == "drop" else None, row.get("control"))
        parts = (row["encoder"], row["alignment"], f"{row['k']}tk", *others)
        return "-".join(str(part) for part in parts if part is not None)
    return None


def _picture_of(row: dict[str, Any], folder: Path) -> Path | None:
    return folder / row["image"] if isinstance(row.get("image"), str) and row["image"] else None


def _row_of(line: bytes) -> dict[str, Any] | None:
    """A row with a clip; None if the line isn't one."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("clip"), str | int | float) else None
