"""Where clips come from: files, folders, patterns, tables, WebDataset tars and `datasets`, as one list of clips."""

import csv
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from llava_soundclip.clips import FILM_SUFFIXES, MEDIA_SUFFIXES, find_clips
from llava_soundclip.media import MediaError, Source

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"})
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SOUND_SUFFIXES = MEDIA_SUFFIXES - FILM_SUFFIXES
_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside of a tar that isn't packed: where its bytes are."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise MediaError(f"{self.path}/{self.name}: the tar is cut before its end")
        return content


@dataclass(frozen=True, slots=True)
class DatasetCell:
    """A column of a row of a `datasets` dataset, read when its turn comes."""

    dataset: Any
    row: int
    column: str


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes with the name that messages call them."""

    content: bytes
    name: str


Media: TypeAlias = str | TarMember | DatasetCell | Content


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to make features of.

    Attributes:
        id: its name in the features folder: the same in every run, and no other clip's.
        source: the film that it comes from; clips of one film are kept together when data is split.
        sound: the file with the sound; a path, or a part of an archive.
        picture: the file with the picture or film; None for the sound's own.
        start: seconds in the film; None for its beginning.
        end: seconds in the film; None for its end.
        fault: why it can't be used, if that is known before it is opened.
    """

    id: str
    source: str
    sound: Media
    picture: Media | None = None
    start: float | None = None
    end: float | None = None
    fault: str | None = None

    def fetched(self) -> "Clip":
        """The clip as a worker process gets it, without references to a dataset."""
        try:
            sound, picture = (
                _fetch(media) if isinstance(media, DatasetCell) else media
                for media in (self.sound, self.picture)
            )
        except Exception as error:  # noqa: BLE001 - of whatever kind a dataset raises
            return replace(self, sound="", picture=None, fault=str(error) or type(error).__name__)
        if sound is self.sound and picture is self.picture:
            return self
        assert sound is not None
        return replace(self, sound=sound, picture=picture)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that say what its clips are.

    A default that a table lacks is left out (but `path`); a name of your own that it lacks is an error. "" turns a
    column off. `path` and `picture` may be patterns of columns, like "{youtube_id}.mp4".

    Attributes:
        path: the film or sound; a relative path begins where the table is, or at `root`.
        picture: a picture or film for the sound.
        start: seconds.
        end: seconds.
        id: the clip's name; by default it is made of the path and the times.
        source: the film's name; by default its path.
    """

    path: str = "path"
    picture: str = "picture"
    start: str = "start"
    end: str = "end"
    id: str = "id"
    source: str = "source"

    def resolve(self, there: Sequence[str], table: str) -> dict[str, str]:
        """What to read of each row: the columns that are there, by their meaning.

        Raises:
            ValueError: if one that is asked for is missing; both it and the table's columns are named.
        """
        result = {}
        for field in fields(self):
            name = getattr(self, field.name)
            missing = [column for column in _columns_of(name, field.name) if column not in there]
            if not name or (missing and name == field.default and field.name != "path"):
                continue
            if missing:
                raise ValueError(
                    f"{table} has no column {missing[0]!r} for the {field.name}; its columns are "
                    f"{', '.join(there) or 'none'}. Say which one it is."
                )
            result[field.name] = name
        if "path" not in result:
            raise ValueError(f"{table}: which column is the path?")
        return result


# AVE-2's annotations name films by their YouTube ids; the media aren't part of it.
AVE2 = Columns(
    path="{youtube_id}.mp4", start="segment_start_time", end="segment_end_time", source="youtube_id"
)


def read_clips(
    names: Iterable[str], *, columns: Columns | None = None, root: str | os.PathLike[str] | None = None
) -> list[Clip]:
    """All clips of files, folders, patterns, tables and tars, each once.

    Ids don't depend on where the data lies: a file's is its folder's name and its own; in a named folder, or one that
    a pattern begins with, that folder's name and the path below it. A sound file takes the picture beside it that has
    its name, if there is one.

    Args:
        names: films, sounds, folders and patterns of them; tables (.csv, .tsv, .json, .jsonl, .parquet); WebDataset
            tars, not packed.
        columns: of tables.
        root: where a table's relative paths begin, instead of its own folder.

    Returns:
        The clips, also those that are known to be bad.

    Raises:
        ValueError: if a table lacks a column or can't be read, a tar is packed, or two clips have one id.
    """
    wanted = columns or Columns()
    clips: dict[str, Clip] = {}
    for name in names:
        base = _base_of(name)
        for path in find_clips([name]):
            suffix = Path(path).suffix.lower()
            found: Iterable[Clip]
            if path.lower().endswith(_PACKED_TARS):
                raise ValueError(
                    f"{path} is packed, so its clips can't be read one by one: unpack it to a .tar"
                )
            if suffix == ".tar":
                found = _read_tar(path)
            elif suffix in TABLE_SUFFIXES and os.path.exists(path):
                found = _read_table(path, wanted, root)
            else:
                found = [_file_clip(path, base)]
            _collect(clips, found)
    return list(clips.values())


def read_dataset(
    dataset: Any,
    *,
    name: str,
    sound: str = "audio",
    picture: str | None = None,
    columns: Columns | None = None,
) -> list[Clip]:
    """The clips of a `datasets.Dataset`. Rows are read when their turn comes.

    Args:
        dataset: with a column of sounds or films (`Audio`, `Video` or binary), and perhaps one of pictures.
        name: what ids begin with.
        sound: the column of sounds or films.
        picture: the column of pictures; None for the films' own.
        columns: for `id`, `source`, `start` and `end`.

    Returns:
        The clips. A row without an id has its number.

    Raises:
        ValueError: if a column is missing, or two clips have one id.
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
    sounds = dataset.select_columns([sound])  # so that a row doesn't bring the other columns along
    pictures = None if picture is None else dataset.select_columns([picture])
    clips: dict[str, Clip] = {}
    for row in range(len(dataset)):
        cells = {key: values[column][row] for key, column in meanings.items()}
        start, end, fault = _times(cells)
        given = _text(cells.get("id"))
        own = _text(f"{name}/{row:08}" if given is None else given)
        assert own is not None
        media = DatasetCell(sounds, row, sound)
        pictured = None if picture is None else DatasetCell(pictures, row, picture)
        _collect(clips, [Clip(own, _text(cells.get("source")) or own, media, pictured, start, end, fault)])
    return list(clips.values())


def open_media(media: Media) -> Source:
    """What `media` decodes.

    Raises:
        MediaError: if a tar ends before its member does.
        OSError: if a tar can't be read.
    """
    if isinstance(media, TarMember):
        return _named(media.read(), f"{media.path}/{media.name}")
    if isinstance(media, Content):
        return _named(media.content, media.name)
    if isinstance(media, DatasetCell):
        raise TypeError("a dataset's cell is fetched before it is opened")
    return media


class _NamedBytes(io.BytesIO):
    name: str


def _named(content: bytes, name: str) -> io.BytesIO:
    file = _NamedBytes(content)
    file.name = name
    return file


def _fetch(cell: DatasetCell) -> Media:
    """The content of a dataset's cell: bytes, or a path."""
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
        f"{name}: it is empty" if value is None else f"{name}: it is a {type(value).__name__}, no file"
    )


def _collect(clips: dict[str, Clip], found: Iterable[Clip]) -> None:
    for clip in found:
        known = clips.setdefault(clip.id, clip)
        if _place(known) != _place(clip):
            raise ValueError(
                f"two clips have the id {clip.id!r}: {_place(known)} and {_place(clip)}. Name a folder that is above "
                "both, or give the clips ids in a table."
            )


def _place(clip: Clip) -> str:
    """Where a clip is, for comparing and for messages."""
    media = clip.sound
    if isinstance(media, str):
        where = os.path.abspath(media)
    elif isinstance(media, TarMember):
        where = f"{os.path.abspath(media.path)}/{media.name}"
    else:
        where = f"row {media.row}" if isinstance(media, DatasetCell) else media.name
    return (
        where if clip.start is None and clip.end is None else f"{where} {_times_text(clip.start, clip.end)}"
    )


# Files


def _base_of(name: str) -> str:
    """The folder whose name ids begin with."""
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
    id = _text(
        PurePosixPath(os.path.basename(base), Path(os.path.relpath(whole, base)).as_posix()).as_posix()
    )
    assert id is not None
    return Clip(id, id, path, _picture_beside(path))


def _picture_beside(path: str) -> str | None:
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in _SOUND_SUFFIXES:
        return None
    return next((stem + picture for picture in PICTURE_SUFFIXES if os.path.exists(stem + picture)), None)


# Tables


def _columns_of(name: str, meaning: str) -> list[str]:
    """The columns that a name, or a pattern for a path, is about."""
    patterned = re.findall(r"\{([^{}]+)\}", name) if meaning in ("path", "picture") else []
    return patterned or ([name] if name else [])


def _read_table(path: str, columns: Columns, root: str | os.PathLike[str] | None) -> Iterator[Clip]:
    there, rows = _rows_of(path)
    meanings = columns.resolve(there, path)
    folder = os.path.dirname(path) if root is None else os.fspath(root)
    for number, row in enumerate(rows, 1):
        cells = {meaning: _cell(row, name, meaning) for meaning, name in meanings.items()}
        start, end, fault = _times(cells)
        film = _text(cells.get("path"))
        if film is None:
            fault, film = f"row {number} of {path} has no path", f"{os.path.basename(path)}:{number}"
        source = _text(cells.get("source")) or PurePosixPath(film).as_posix()
        id = _text(cells.get("id")) or _with_times(PurePosixPath(film).as_posix(), start, end)
        sound = os.path.join(folder, film)
        picture = _text(cells.get("picture"))
        pictured = _picture_beside(sound) if picture is None else os.path.join(folder, picture)
        yield Clip(id, source, sound, pictured, start, end, fault)


def _rows_of(path: str) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    """A table's columns and rows.

    Raises:
        ValueError: if it can't be read; it is named.
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
    columns = _columns_of(name, meaning)
    if columns == [name]:
        return row.get(name)
    values = {column: _text(row.get(column)) for column in columns}
    if None in values.values():
        return None
    return re.sub(r"\{([^{}]+)\}", lambda found: str(values[found[1]]), name)


def _text(value: Any) -> str | None:
    """A cell as text, None if it is empty. What isn't Unicode in a file's name is escaped."""
    if value is None or value == "":
        return None
    return str(value).encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def _times(cells: Mapping[str, Any]) -> tuple[float | None, float | None, str | None]:
    """Start and end in seconds, and what is wrong with them."""
    seconds: list[float | None] = []
    for name in ("start", "end"):
        value = cells.get(name)
        if value is None or value == "":
            seconds.append(None)
            continue
        try:
            seconds.append(float(value))
        except (TypeError, ValueError):
            return None, None, f"its {name} is {value!r}, not seconds"
    start, end = seconds
    if not all(value is None or 0 <= value < math.inf for value in seconds):
        return None, None, f"it goes {_times_text(start, end)}: times are seconds, 0 or more"
    if end is not None and end <= (start or 0.0):
        return None, None, f"it goes {_times_text(start, end)}: it ends before it begins"
    return start, end, None


def _times_text(start: float | None, end: float | None) -> str:
    return f"from {0.0 if start is None else start:g} s" + ("" if end is None else f" to {end:g} s")


def _with_times(name: str, start: float | None, end: float | None) -> str:
    """An id of a film's name and times: "a.mp4#1.5-4.5"."""
    if start is None and end is None:
        return name
    texts = ["" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") for value in (start, end)]
    return f"{name}#{texts[0] or '0'}-{texts[1]}"


# WebDataset


def _read_tar(path: str) -> Iterator[Clip]:
    """The samples of a tar: members whose names are equal up to the first dot. Nothing is unpacked."""
    samples: dict[str, dict[str, TarMember]] = {}
    whole = os.path.abspath(path)
    prefix = f"{os.path.basename(os.path.dirname(whole))}/{os.path.basename(whole)}"
    fault = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if member.isreg() and not member.issparse() and stem:
                    key = f"{folder}/{stem}" if folder else stem
                    place = TarMember(path, member.offset_data, member.size, member.name)
                    samples.setdefault(key, {})[f".{extension.lower()}"] = place
    except (OSError, tarfile.TarError) as error:
        fault = f"{path} is cut, damaged or no tar: {error}"
    for key, members in samples.items():
        id = _text(f"{prefix}/{key}") or prefix
        sound = _first(members, _SOUND_SUFFIXES) or _first(members, FILM_SUFFIXES)
        picture = _first(members, PICTURE_SUFFIXES) or _first(members, FILM_SUFFIXES)
        if sound is None:
            names = ", ".join(member.name for member in members.values())
            yield Clip(id, id, path, fault=f"{path}/{key}: none of its files ({names}) is a sound or a film")
        else:
            yield Clip(id, id, sound, None if picture is sound else picture)
    if fault is not None:
        yield Clip(_text(prefix) or path, prefix, path, fault=fault)


def _first(members: Mapping[str, TarMember], suffixes: Iterable[str]) -> TarMember | None:
    """The member of a kind; what WebDataset calls "left.wav" is a wav."""
    kinds = frozenset(suffixes)
    return next((place for name, place in sorted(members.items()) if Path(f"_{name}").suffix in kinds), None)
