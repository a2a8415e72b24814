"""One clip: the locations of its sound and picture, its start and its end."""

import errno
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

from llava_soundclip._text import printable
from llava_soundclip.media import MAX_PIXELS, MAX_SECONDS, MediaError, Source
from llava_soundclip.media.files import never_opened


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in an uncompressed tar, as the position of its bytes."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """Read the file's bytes.

        Raises:
            MediaError: if the tar ends before the file does.
            OSError: if the tar can't be read.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise MediaError(f"{printable(self.path)}/{printable(self.name)}: the tar is truncated")
        return content


@dataclass(frozen=True, slots=True)
class DatasetCell:
    """A cell of a `datasets` dataset, read when it is needed."""

    dataset: Any
    row: int
    column: str


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A cell of a Parquet file that holds a file's content or its path; a relative path starts from `folder`."""

    path: str
    row: int
    column: str
    folder: str

    def read(self) -> "str | Content":
        """Read the cell.

        Raises:
            ValueError: if it is empty.
            OSError: if the Parquet file can't be read.
        """
        value = _parquet_value(self.path, self.row, self.column)
        media = _media_of(value, f"{self.path}, row {self.row + 1}, {self.column}")
        return os.path.join(self.folder, media) if isinstance(media, str) else media


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes, with a name for messages."""

    content: bytes
    name: str


Media: TypeAlias = str | TarMember | DatasetCell | ParquetCell | Content


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: a sound with its picture.

    Attributes:
        id: its name in the features folder, unique and the same in every run.
        source: the video that it comes from; clips of one video stay together when data is split.
        sound: the file with the sound: a path, or a part of an archive or dataset.
        picture: the file with the picture or video; None for the sound's own file.
        start: start in the video, in seconds; None for its beginning.
        end: end in the video, in seconds; None for its end.
        fault: the reason why it can't be used, if that is known before it is opened.
        track: number of the sound track, counted from 0; None for the best one that can be decoded.
        max_seconds: length of sound above which it is refused.
        max_pixels: number of pixels above which its picture is refused.
    """

    id: str
    source: str
    sound: Media
    picture: Media | None = None
    start: float | None = None
    end: float | None = None
    fault: str | None = None
    track: int | None = None
    max_seconds: float = MAX_SECONDS
    max_pixels: int = MAX_PIXELS

    def fetched(self) -> "Clip":
        """The clip for a worker process: cells of a dataset are replaced by their content."""
        try:
            sound, picture = (
                _fetch(media) if isinstance(media, DatasetCell) else media
                for media in (self.sound, self.picture)
            )
        except Exception as error:  # noqa: BLE001 - a dataset may raise anything
            return replace(self, sound="", picture=None, fault=str(error) or type(error).__name__)
        if sound is self.sound and picture is self.picture:
            return self
        assert sound is not None
        return replace(self, sound=sound, picture=picture)


def known_fault(clip: Clip) -> str | None:
    """The reason why a clip can't be used, as far as it is known without opening its files; else None."""
    if clip.fault is not None:
        return clip.fault
    for media in (clip.sound, clip.picture):
        if isinstance(media, str):
            reason = never_opened(media)
            if reason is None and not os.path.exists(media):
                reason = f"{printable(media)}: {os.strerror(errno.ENOENT)}"
            if reason is not None:
                return reason
    return None


def open_media(media: Media) -> Source:
    """A source for the decoders of `media`.

    Raises:
        MediaError: if a tar ends before its member does.
        OSError: if a tar can't be read.
    """
    if isinstance(media, TarMember):
        return _named(media.read(), f"{media.path}/{media.name}")
    if isinstance(media, ParquetCell):
        try:
            media = media.read()
        except (OSError, ValueError) as error:
            raise MediaError(str(error)) from error
    if isinstance(media, Content):
        return _named(media.content, media.name)
    if isinstance(media, DatasetCell):
        raise TypeError("a dataset's cell must be fetched before it is opened")
    return media


class _NamedBytes(io.BytesIO):
    name: str


def _named(content: bytes, name: str) -> io.BytesIO:
    file = _NamedBytes(content)
    file.name = name
    return file


def _fetch(cell: DatasetCell) -> Media:
    """The content of a dataset's cell, as bytes or a path."""
    return _media_of(cell.dataset[cell.row][cell.column], f"row {cell.row}, {cell.column}")


def _parquet_value(path: str, row: int, column: str) -> Any:
    for group, rows in enumerate(_rows_of_groups(path)):
        if row < rows:
            return _column_of_group(path, group, column)[row].as_py()
        row -= rows
    raise ValueError(f"{printable(path)}: it has fewer rows than before")


@lru_cache(maxsize=8)
def _rows_of_groups(path: str) -> list[int]:
    import pyarrow.parquet as pq

    about = pq.ParquetFile(path).metadata
    return [about.row_group(group).num_rows for group in range(about.num_row_groups)]


@lru_cache(maxsize=2)  # clips come in the order of the rows; one column for sounds, perhaps one for pictures
def _column_of_group(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(column)


def _media_of(value: Any, name: str) -> "str | Content":
    """A file from a cell of a dataset or Parquet file: its bytes, or its path.

    Raises:
        ValueError: for anything else.
    """
    name = printable(name)
    if isinstance(value, Mapping):
        name = printable(str(value.get("path") or name))
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Content(value, name)
    if isinstance(value, str) and value:
        return value
    raise ValueError(
        f"{name}: it is empty" if value is None else f"{name}: it is a {type(value).__name__}, not a file"
    )


def collect(clips: dict[str, Clip], found: Iterable[Clip]) -> None:
    """Add clips by their ids to the clips collected so far. The same clip is added once.

    Raises:
        ValueError: if two clips have the same id.
    """
    for clip in found:
        if clip.fault is not None:
            clip = _with_free_id(clip, clips)
        known = clips.setdefault(clip.id, clip)
        if known is not clip and _place(known) != _place(clip):
            raise ValueError(
                f"two clips have the id {printable(clip.id)!r}: {printable(_place(known))} and "
                f"{printable(_place(clip))}. Name a folder that is above both, or give the clips ids in a table."
            )


def _with_free_id(clip: Clip, clips: Mapping[str, Clip]) -> Clip:
    """A clip that can't be used under an id of its own, so that it is counted besides others of its id."""
    id, number = clip.id, 2
    while id in clips and clips[id] != clip:
        id, number = f"{clip.id} ({number})", number + 1
    return replace(clip, id=id)


def _place(clip: Clip) -> str:
    """The location of a clip, for comparison and for messages."""
    media = clip.sound
    if isinstance(media, str):
        where = os.path.abspath(media)
    elif isinstance(media, TarMember):
        where = f"{os.path.abspath(media.path)}/{media.name}"
    elif isinstance(media, ParquetCell):
        where = f"{os.path.abspath(media.path)}, row {media.row + 1}"
    else:
        where = f"row {media.row}" if isinstance(media, DatasetCell) else media.name
    if clip.fault is not None:
        where = f"{where} ({clip.fault})"
    return where if clip.start is None and clip.end is None else f"{where} {times_text(clip.start, clip.end)}"


def times_text(start: float | None, end: float | None) -> str:
    """A start and an end as a phrase."""
    return f"from {0.0 if start is None else start:g} s" + ("" if end is None else f" to {end:g} s")
