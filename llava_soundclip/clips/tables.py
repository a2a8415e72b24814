"""Clips of tables: CSV, TSV, JSON, JSON Lines and Parquet."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from llava_soundclip.clips.cells import as_text, read_times, with_times
from llava_soundclip.clips.clip import Clip
from llava_soundclip.clips.find import picture_beside

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"})


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, by their meaning.

    A default column may be missing from a table, except `path`; a column that you name must exist. "" turns a column
    off. `path` and `picture` may be patterns of columns, like "{youtube_id}.mp4".

    Attributes:
        path: the video or sound; a relative path starts from the table's folder, or from `root`.
        picture: a picture or video for the sound.
        start: start in seconds.
        end: end in seconds.
        id: the clip's name; by default it is made from the path and the times.
        source: the video's name; by default its path.
    """

    path: str = "path"
    picture: str = "picture"
    start: str = "start"
    end: str = "end"
    id: str = "id"
    source: str = "source"

    def resolve(self, there: Sequence[str], table: str) -> dict[str, str]:
        """The columns to read, by their meaning.

        Raises:
            ValueError: if a column is missing that the user named. The message lists the table's columns.
        """
        result = {}
        for field in fields(self):
            name = getattr(self, field.name)
            missing = [column for column in columns_of(name, field.name) if column not in there]
            if not name or (missing and name == field.default and field.name != "path"):
                continue
            if missing:
                raise ValueError(
                    f"{table} has no column {missing[0]!r} for the {field.name}; its columns are "
                    f"{', '.join(there) or 'none'}. Name the right one."
                )
            result[field.name] = name
        if "path" not in result:
            raise ValueError(f"{table}: which column is the path?")
        return result


# AVE-2's annotations name videos by their YouTube ids; it doesn't contain the media.
AVE2 = Columns(
    path="{youtube_id}.mp4", start="segment_start_time", end="segment_end_time", source="youtube_id"
)


def columns_of(name: str, meaning: str) -> list[str]:
    """The columns in a name, or in a pattern for a path."""
    patterned = re.findall(r"\{([^{}]+)\}", name) if meaning in ("path", "picture") else []
    return patterned or ([name] if name else [])


def read_table(path: str, columns: Columns, root: str | os.PathLike[str] | None) -> Iterator[Clip]:
    """Yield the clips of a table, one per row. A row without a path is a bad clip.

    Args:
        path: the table, with a suffix in `TABLE_SUFFIXES`.
        columns: the names of its columns.
        root: folder that relative paths start from; None for the table's folder.

    Raises:
        ValueError: if the table can't be read or lacks a column.
    """
    there, rows = _rows_of(path)
    meanings = columns.resolve(there, path)
    folder = os.path.dirname(path) if root is None else os.fspath(root)
    for number, row in enumerate(rows, 1):
        cells = {meaning: _cell(row, name, meaning) for meaning, name in meanings.items()}
        start, end, fault = read_times(cells)
        video = as_text(cells.get("path"))
        if video is None:
            fault, video = f"row {number} of {path} has no path", f"{os.path.basename(path)}:{number}"
        source = as_text(cells.get("source")) or PurePosixPath(video).as_posix()
        id = as_text(cells.get("id")) or with_times(PurePosixPath(video).as_posix(), start, end)
        sound = os.path.join(folder, video)
        picture = as_text(cells.get("picture"))
        pictured = picture_beside(sound) if picture is None else os.path.join(folder, picture)
        yield Clip(id, source, sound, pictured, start, end, fault)


def _rows_of(path: str) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    """A table's columns and rows.

    Raises:
        ValueError: if it can't be read; the message names it.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            return table.column_names, table.to_pylist()
        with open(path, encoding="utf-8-sig", newline="") as file:
            if suffix in (".csv", ".tsv"):
                reader = csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t")
                records = list(reader)
                return list(reader.fieldnames or []), records
            text = file.read()
        objects = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
        if not all(isinstance(row, dict) for row in objects):
            raise ValueError("its rows aren't objects")
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} can't be read as a table: {error}") from error
    return list(dict.fromkeys(name for row in objects for name in row)), objects


def _json_lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _cell(row: Mapping[str, Any], name: str, meaning: str) -> Any:
    columns = columns_of(name, meaning)
    if columns == [name]:
        return row.get(name)
    values = {column: as_text(row.get(column)) for column in columns}
    if None in values.values():
        return None
    return re.sub(r"\{([^{}]+)\}", lambda found: str(values[found[1]]), name)
