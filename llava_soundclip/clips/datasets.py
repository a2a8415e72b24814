"""Clips of a `datasets.Dataset`, given as an object or by a name like "dataset:NAME:SPLIT"."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_soundclip._extras import require
from llava_soundclip.clips.cells import as_text, read_times
from llava_soundclip.clips.clip import Clip, DatasetCell, collect
from llava_soundclip.clips.tables import Columns

PREFIX = "dataset:"  # prefix of the names for `read_named_dataset`


def read_dataset(
    dataset: Any,
    *,
    name: str,
    sound: str = "audio",
    picture: str | None = None,
    columns: Columns | None = None,
) -> list[Clip]:
    """The clips of a `datasets.Dataset`. Rows are read when they are needed.

    Args:
        dataset: a dataset with a column of sounds or videos (`Audio`, `Video` or binary), and optionally a column of
            pictures.
        name: prefix of the ids.
        sound: the column of sounds or videos.
        picture: the column of pictures; None to use frames of the videos.
        columns: the columns of `id`, `source`, `start` and `end`.

    Returns:
        The clips. A row without an id gets its number.

    Raises:
        ValueError: if a column is missing, or two clips have the same id.
    """
    there = list(dataset.column_names)
    for column in (sound, *([] if picture is None else [picture])):
        if column not in there:
            raise ValueError(f"the dataset has no column {column!r}; its columns are {', '.join(there)}")
        if hasattr(dataset.features[column], "decode"):
            dataset = dataset.cast_column(column, replace(dataset.features[column], decode=False))
    wanted = replace(columns or Columns(), path=sound, picture="")
    meanings = {key: column for key, column in wanted.resolve(there, "the dataset").items() if key != "path"}
    values = dataset.select_columns(list(meanings.values()))[:] if meanings else {}
    sounds = dataset.select_columns([sound])  # so that reading a row doesn't read the other columns
    pictures = None if picture is None else dataset.select_columns([picture])
    clips: dict[str, Clip] = {}
    for row in range(len(dataset)):
        cells = {key: values[column][row] for key, column in meanings.items()}
        start, end, fault = read_times(cells)
        given = as_text(cells.get("id"))
        own = as_text(f"{name}/{row:08}" if given is None else given)
        assert own is not None
        media = DatasetCell(sounds, row, sound)
        pictured = None if picture is None else DatasetCell(pictures, row, picture)
        collect(clips, [Clip(own, as_text(cells.get("source")) or own, media, pictured, start, end, fault)])
    return list(clips.values())


def read_named_dataset(name: str, columns: Columns | None = None) -> list[Clip]:
    """The clips of "dataset:NAME[:SPLIT]".

    Args:
        name: NAME is a Hub id, or a folder that `save_to_disk` wrote; SPLIT is "train" by default.
        columns: `path` is the column of sounds or videos, by default "audio"; the others are as in tables.

    Raises:
        ImportError: if `datasets` isn't installed.
        ValueError: as in `read_dataset`.
        OSError: if the dataset can't be found or reached.
    """
    datasets = require("datasets", extra="datasets")
    wanted, default = columns or Columns(), Columns()
    path, _, split = name.removeprefix(PREFIX).rpartition(":")
    if not path:
        path, split = split, "train"
    is_saved = (Path(path) / "dataset_info.json").exists()
    dataset = datasets.load_from_disk(path) if is_saved else datasets.load_dataset(path, split=split)
    has_picture = wanted.picture in dataset.column_names or wanted.picture != default.picture
    return read_dataset(
        dataset,
        name=path,
        sound="audio" if wanted.path == default.path else wanted.path,
        picture=wanted.picture if wanted.picture and has_picture else None,
        columns=wanted,
    )
