"""Clips of tables: CSV, TSV, JSON, JSON Lines and Parquet."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from llava_soundclip._text import printable
from llava_soundclip.clips.cells import as_text, read_times, with_times
from llava_soundclip.clips.clip import Clip, ParquetCell
from llava_soundclip.clips.find import MEDIA_SUFFIXES, picture_beside
from llava_soundclip.clips.separated import read_separated
from llava_soundclip.files import parse_json
from llava_soundclip.media.files import address_fault, never_opened

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"})


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, by their meaning.

    A default column may be missing from a table, except `path`; a column that you name must exist. "" turns a column
    off. `path` and `picture` may be patterns of columns, like "{youtube_id}.mp4" or "{id}_{start:06d}.mp4". In Parquet
    they may also be columns of files' contents, as `datasets` writes them.

    Attributes:
        path: the video or sound; a relative path starts from the table's folder, or from `root`.
        picture: a picture or video for the sound.
        start: start in seconds.
        end: end in seconds.
        id: the clip's name; by default it is made from the path and the times.
        source: the video's name; by default its path.
        seconds: length of a segment that has a start and no end; None for the rest of the video.
        header: the names of all columns, for CSV files without a header.
    """

    path: str = "path"
    picture: str = "picture"
    start: str = "start"
    end: str = "end"
    id: str = "id"
    source: str = "source"
    seconds: float | None = None
    header: tuple[str, ...] = ()

    def resolve(self, there: Sequence[str], table: str) -> dict[str, str]:
        """The columns to read, by their meaning.

        Raises:
            ValueError: if a column is missing that the user named. The message lists the table's columns.
        """
        result = {}
        for meaning in _MEANINGS:
            name, default = getattr(self, meaning), getattr(Columns, meaning)
            missing = [column for column in columns_of(name, meaning) if column not in there]
            if not name or (missing and name == default and meaning != "path"):
                continue
            if missing:
                raise ValueError(
                    f"{table} has no column {missing[0]!r} for the {meaning}; its columns are "
                    f"{', '.join(map(printable, there)) or 'none'}. Name the right one{_advice(there)}."
                )
            result[meaning] = name
        if "path" not in result:
            raise ValueError(f"{table}: which column is the path?")
        return result

    def over(self, other: "Columns") -> "Columns":
        """Another table's columns, with those that are named here."""
        default = Columns()
        named = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        }
        return replace(other, **named)


_MEANINGS = ("path", "picture", "start", "end", "id", "source")

# Tables as they are published. None contains the media; the paths are those that people give them.
AVE2 = Columns(
    path="{youtube_id}.mp4", start="segment_start_time", end="segment_end_time", source="youtube_id"
)
AUDIOSET = Columns(
    path="{YTID}.mp4",
    start="start_seconds",
    end="end_seconds",
    source="YTID",
    header=("YTID", "start_seconds", "end_seconds", "positive_labels"),
)
AUDIOCAPS = Columns(
    path="{youtube_id}.mp4", start="start_time", id="audiocap_id", source="youtube_id", seconds=10.0
)
VGGSOUND = Columns(  # its clips are published already cut, under these names
    path="{YTID}_{start_seconds:06d}.mp4",
    start="",
    end="",
    source="YTID",
    header=("YTID", "start_seconds", "label", "split"),
)
FORMATS = {"ave2": AVE2, "audioset": AUDIOSET, "audiocaps": AUDIOCAPS, "vggsound": VGGSOUND}


def columns_of(name: str, meaning: str) -> list[str]:
    """The columns in a name, or in a pattern for a path."""
    patterned = _PATTERN.findall(name) if meaning in ("path", "picture") else []
    return [column for column, _ in patterned] or ([name] if name else [])


_PATTERN = re.compile(r"\{([^{}]+?)(?::(0?\d{0,3}d))?\}")  # {column} or {column:06d}


def read_table(path: str, columns: Columns, root: str | os.PathLike[str] | None) -> Iterator[Clip]:
    """Yield the clips of a table, one per row. A row that can't be used is a bad clip.

    The tables of AVE-2, AudioSet, AudioCaps and VGGSound are recognised by their columns.

    Args:
        path: the table, with a suffix in `TABLE_SUFFIXES`.
        columns: the names of its columns.
        root: folder that relative paths start from; None for the table's folder.

    Raises:
        ValueError: if the table can't be read or lacks a column.
    """
    shown = printable(path)
    there, rows, contents = _rows_of(path, columns)
    columns = _recognised(there, contents, columns)
    meanings = columns.resolve(there, shown)
    folder = os.path.dirname(path) if root is None else os.fspath(root)
    stem = os.path.basename(path)
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            yield _bad_row(path, stem, number, f"row {number} of {shown} {row}")
            continue
        cells: dict[str, Any] = {}
        fault: str | None = None
        for meaning, name in meanings.items():
            try:
                held = name in contents
                cells[meaning] = (
                    ParquetCell(path, number - 1, name, folder) if held else _cell(row, name, meaning)
                )
            except ValueError as error:
                fault = str(error)
        start, end, wrong = read_times(cells)
        if end is None and start is not None and columns.seconds is not None:
            end = start + columns.seconds
        media = cells.get("path")
        if media is None or media == "":
            fault = fault or f"row {number} of {shown} has no path"
        if fault is not None or wrong is not None:
            named = media if isinstance(media, str) and media else stem
            yield _bad_row(path, named, number, str(fault or wrong))
            continue
        is_held = isinstance(media, ParquetCell)
        name = f"{Path(path).stem}/{number - 1:08}" if is_held else PurePosixPath(str(media)).as_posix()
        name = as_text(name) or name
        sound: Any = media if is_held else _placed(folder, media)
        picture = cells.get("picture")
        if picture is None or picture == "":
            picture = None if is_held else picture_beside(sound)
        elif not isinstance(picture, ParquetCell):
            picture = _placed(folder, picture)
        id = as_text(cells.get("id")) or with_times(name, start, end)
        yield Clip(id, as_text(cells.get("source")) or name, sound, picture, start, end)


def _placed(folder: str, path: Any) -> str:
    """A path from a table, which may be relative to a folder. Addresses stay, so that errors name them."""
    return str(path) if address_fault(str(path)) is not None else os.path.join(folder, str(path))


def _bad_row(table: str, name: str, number: int, fault: str) -> Clip:
    """The clip of a row that can't be used. Its id names the row, since it may share a path with others."""
    stem = os.path.basename(table)
    id = f"{name}:{number}" if name == stem else f"{name} (row {number} of {stem})"
    id = as_text(id) or id
    return Clip(id, id, table, fault=fault)


def _advice(there: Sequence[str]) -> str:
    """What to do about a table whose first row looks like data."""
    is_data = any(_is_number(name) or Path(name).suffix.lower() in MEDIA_SUFFIXES for name in there)
    return ", or put a row of names first: this one looks like data" if is_data else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _recognised(there: Sequence[str], contents: Collection[str], columns: Columns) -> Columns:
    """The columns of a published table if it is one, unless the user named a path.

    So are those of sounds, videos and pictures that `datasets` writes: "audio", "video", "image".
    """
    if "image" in contents and columns.picture == Columns.picture and Columns.picture not in there:
        columns = replace(columns, picture="image")
    if columns.path != Columns.path or Columns.path in there:
        return columns
    for format in FORMATS.values():
        needed = {c for m in _MEANINGS for c in columns_of(getattr(format, m), m)} - set(_MEANINGS)
        if needed <= set(there):
            return columns.over(format)
    media = [name for name in ("audio", "video") if name in contents]
    return replace(columns, path=media[0]) if len(media) == 1 else columns


Row = Mapping[str, Any] | str


def _rows_of(path: str, columns: Columns) -> tuple[list[str], Iterable[Row], set[str]]:
    """A table's columns, its rows, and the columns that hold the contents of files.

    A row that can't be used is a phrase that says why.

    Raises:
        ValueError: if it can't be read; the message names it.
    """
    suffix = Path(path).suffix.lower()
    shown = printable(path)
    reason = never_opened(path)
    if reason is not None:
        raise ValueError(reason)
    try:
        if suffix == ".parquet":
            return _parquet(path)
        with open(path, "rb") as file:
            text = _decoded(file.read())
        if suffix in (".csv", ".tsv"):
            delimiter = "," if suffix == ".csv" else "\t"
            keys = columns_of(columns.path, "path")
            return *read_separated(text, delimiter, columns.header, keys, VGGSOUND.header), set()
        objects = parse_json(text) if text.lstrip().startswith("[") else _json_lines(text)
        if not all(isinstance(row, dict) for row in objects):
            raise ValueError("its rows aren't objects")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{shown} can't be read as a table: {reason}") from error
    return list(dict.fromkeys(name for row in objects for name in row)), objects, set()


def _decoded(content: bytes) -> str:
    """The text of a table in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets write it."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} isn't UTF-8: save the table as UTF-8") from error


def _parquet(path: str) -> tuple[list[str], Iterable[Row], set[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    contents = {field.name for field in schema if _holds_contents(field.type)}
    others = [
        field.name for field in schema if field.name not in contents and not pa.types.is_nested(field.type)
    ]
    rows = file.read(columns=others).to_pylist() if others else [{}] * file.metadata.num_rows
    return schema.names, rows, contents


def _holds_contents(kind: Any) -> bool:
    """Whether a column holds the contents of files: bytes, or what `datasets` writes for sounds and pictures."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _json_lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _cell(row: Mapping[str, Any], name: str, meaning: str) -> Any:
    """A row's cell, or several in a pattern; None if one is empty.

    Raises:
        ValueError: if it isn't text or a number, or isn't the whole number that the pattern asks for.
    """
    if columns_of(name, meaning) == [name]:
        value = row.get(name)
        if meaning in ("path", "picture") and not (value is None or isinstance(value, str | int)):
            raise ValueError(f"its {name} is a {type(value).__name__}, not a path")
        return value
    values = {column: as_text(row.get(column)) for column, _ in _PATTERN.findall(name)}
    if None in values.values():
        return None
    return _PATTERN.sub(lambda found: _formatted(str(values[found[1]]), found[2], found[1]), name)


def _formatted(value: str, form: str | None, column: str) -> str:
    if not form:
        return value
    try:
        number = float(value)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"its {column} is {printable(value, 100)!r}, not a whole number") from None
    return format(int(number), form)
