"""One clip: the locations of its sound and picture, its start and its end."""

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llava_soundclip.media import MediaError, Source


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
            raise MediaError(f"{self.path}/{self.name}: the tar is truncated")
        return content


@dataclass(frozen=True, slots=True)
class DatasetCell:
    """A cell of a `datasets` dataset, read when it is needed."""

    dataset: Any
    row: int
    column: str


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes, with a name for messages."""

    content: bytes
    name: str


Media: TypeAlias = str | TarMember | DatasetCell | Content


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
    """

    id: str
    source: str
    sound: Media
    picture: Media | None = None
    start: float | None = None
    end: float | None = None
    fault: str | None = None
    track: int | None = None

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


def open_media(media: Media) -> Source:
    """A source for the decoders of `media`.

    Raises:
        MediaError: if a tar ends before its member does.
        OSError: if a tar can't be read.
    """
    if isinstance(media, TarMember):
        return _named(media.read(), f"{media.path}/{media.name}")
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
    value = cell.dataset[cell.row][cell.column]
    name = f"row {cell.row}, {cell.column}"
    if isinstance(value, Mapping):
        name = value.get("path") or name
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
        known = clips.setdefault(clip.id, clip)
        if _place(known) != _place(clip):
            raise ValueError(
                f"two clips have the id {clip.id!r}: {_place(known)} and {_place(clip)}. Name a folder that is above "
                "both, or give the clips ids in a table."
            )


def _place(clip: Clip) -> str:
    """The location of a clip, for comparison and for messages."""
    media = clip.sound
    if isinstance(media, str):
        where = os.path.abspath(media)
    elif isinstance(media, TarMember):
        where = f"{os.path.abspath(media.path)}/{media.name}"
    else:
        where = f"row {media.row}" if isinstance(media, DatasetCell) else media.name
    return where if clip.start is None and clip.end is None else f"{where} {times_text(clip.start, clip.end)}"


def times_text(start: float | None, end: float | None) -> str:
    """A start and an end as a phrase."""
    return f"from {0.0 if start is None else start:g} s" + ("" if end is None else f" to {end:g} s")
