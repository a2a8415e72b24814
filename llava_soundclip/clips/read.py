"""All clips that a user names: files, folders, patterns, tables, tars and datasets."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from llava_soundclip._text import printable
from llava_soundclip.clips.cells import as_text
from llava_soundclip.clips.clip import Clip, collect
from llava_soundclip.clips.datasets import PREFIX, read_named_dataset
from llava_soundclip.clips.find import Names, as_names, find_clips, picture_beside, place_of
from llava_soundclip.clips.tables import TABLE_SUFFIXES, Columns, read_table
from llava_soundclip.clips.tars import read_tar
from llava_soundclip.media import MAX_PIXELS, MAX_SECONDS

_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def read_clips(
    names: Names,
    *,
    columns: Columns | None = None,
    root: str | os.PathLike[str] | None = None,
    by_path: bool = False,
    track: int | None = None,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
) -> list[Clip]:
    """All clips in files, folders, patterns, tables, tars and datasets, without duplicates.

    Ids don't depend on the location of the data. A file's id is its folder's name and its own name. In a named folder,
    or in the folder that a pattern begins with, the id is that folder's name and the path below it. A sound file gets
    the picture next to it with the same name, if there is one.

    Args:
        names: one name or several: videos, sounds, folders and patterns of them; tables (.csv, .tsv, .json, .jsonl, .parquet); uncompressed
            WebDataset tars; "dataset:NAME[:SPLIT]", see `read_named_dataset`.
        columns: the columns of tables and datasets.
        root: folder that a table's relative paths start from; by default the table's own folder.
        by_path: whether a file's id is its path, as in rows of captions.
        track: number of the sound track to hear, counted from 0; None for the best one that can be decoded.
        max_seconds: length of sound above which a clip is refused; a small file may hold days.
        max_pixels: number of pixels above which a picture is refused.

    Returns:
        The clips, including those that are known to be bad.

    Raises:
        ValueError: if a table lacks a column or can't be read, a tar is compressed, or two clips have the same id.
    """
    wanted = columns or Columns()
    clips: dict[str, Clip] = {}
    places: set[str] = set()
    for name in as_names(names):
        if name.startswith(PREFIX):
            collect(clips, read_named_dataset(name, wanted))
            continue
        base = _base_of(name)
        for path in find_clips([name]):
            suffix = Path(path).suffix.lower()
            found: Iterable[Clip]
            if path.lower().endswith(_PACKED_TARS):
                raise ValueError(
                    f"{printable(path)} is compressed, so its clips can't be read one by one: decompress it to a .tar"
                )
            if suffix == ".tar":
                found = read_tar(path)
            elif suffix in TABLE_SUFFIXES and os.path.exists(path):
                found = read_table(path, wanted, root)
            else:
                place = place_of(Path(path))
                if place in places:
                    continue
                places.add(place)
                found = [_path_clip(path) if by_path else _file_clip(path, base)]
            collect(clips, found)
    given = {
        "max_seconds": max_seconds,
        "max_pixels": max_pixels,
        **({} if track is None else {"track": track}),
    }
    return [replace(clip, **given) for clip in clips.values()]  # type: ignore[arg-type]


def _base_of(name: str) -> str:
    """The folder whose name is the prefix of ids."""
    path = os.path.abspath(name)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        return os.path.dirname(path)
    parts = Path(path).parts
    fixed = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    return str(Path(*parts[:fixed]))


def _file_clip(path: str, base: str) -> Clip:
    whole = os.path.abspath(path)
    id = as_text(
        PurePosixPath(os.path.basename(base), Path(os.path.relpath(whole, base)).as_posix()).as_posix()
    )
    assert id is not None
    return Clip(id, id, path, picture_beside(path))


def _path_clip(path: str) -> Clip:
    id = as_text(path)
    assert id is not None
    return Clip(id, id, path, picture_beside(path))


def as_clips(clips: Sequence[Clip] | Names) -> list[Clip]:
    """Clips as they are; the clips in files and folders if names are given, with paths for ids.

    Raises:
        ValueError: as in `read_clips`.
    """
    if isinstance(clips, str | os.PathLike):
        return read_clips(clips, by_path=True)
    given = list(clips)
    names = [clip for clip in given if not isinstance(clip, Clip)]
    return read_clips(names, by_path=True) if names else [clip for clip in given if isinstance(clip, Clip)]
