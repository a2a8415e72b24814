"""Captions and references in JSON Lines."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

OPTIONS = ("encoder", "alignment", "k", "tokens", "control", "model")  # of a row of `llava-soundclip caption`
ONLY_SETTING = "captions"  # of a file that names none
_NO_LABELS = ("id", "clip", "source", "references", "reference", "caption", "image")


@dataclass(frozen=True)
class Caption:
    """What was said of a clip in one setting.

    Attributes:
        id: of the clip, the same in every setting and in the references.
        text: the caption; may be empty, which is scored as such.
        setting: such as "raw".
        image: path of the clip's picture or film, for CLIPScore.
        heard: id of the clip whose sound was played instead of its own.
        is_deaf: whether no clip's sound was played: noise or a zero vector had its place.
    """

    id: str
    text: str
    setting: str = ONLY_SETTING
    image: Path | None = None
    heard: str | None = None
    is_deaf: bool = False

    @property
    def played(self) -> str | None:
        """The clip whose sound was played."""
        return None if self.is_deaf else self.heard or self.id


@dataclass(frozen=True)
class Things:
    """What a clip holds.

    Attributes:
        sounding: names of what is heard.
        silent: names of what is only seen.
        unseen: those of `sounding` that aren't in the picture: a caption that names them has heard them.
    """

    sounding: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def read_captions(file: str | PathLike[str]) -> list[Caption]:
    """Read captions, one a row.

    Rows are {"id": ..., "caption": ..., "setting": ..., "image": ...}, the last two if there are any. What
    `llava-soundclip caption --out` writes is read as it is: "clip" is the id, "heard" the clip whose sound was played
    instead, and where it was given no setting its
    options make one, such as "clap-raw-150tk" or "clap-raw-150tk-drop-noise". Other fields are left alone.

    Args:
        file: JSON Lines. Relative paths of pictures begin where it is.

    Raises:
        ValueError: if rows aren't such, name a clip twice in one setting, or some have a setting and some
            none; all of them are named.
        OSError: if it can't be read.
    """
    captions: list[Caption] = []
    faults: list[str] = []
    first_seen: dict[tuple[str, str], int] = {}
    unnamed: list[int] = []
    for line, row in _rows(file, faults):
        clip, text = _clip_of(row), row.get("caption")
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
    _raise_for(file, faults)
    return captions


def read_references(file: str | PathLike[str]) -> dict[str, list[str]]:
    """Read what people wrote of the clips.

    Rows are {"id": ..., "references": [...]}, or "reference" or "caption" with one. A clip may have several
    rows, as in AudioCaps' tables; all of their references count.

    Args:
        file: JSON Lines.

    Returns:
        References by clip, each clip with one at least.

    Raises:
        ValueError: if rows aren't such, or have an empty reference; all of them are named.
        OSError: if it can't be read.
    """
    references: dict[str, list[str]] = {}
    faults: list[str] = []
    for line, row in _rows(file, faults):
        clip = _clip_of(row)
        given = next((row[name] for name in ("references", "reference", "caption") if name in row), None)
        texts = [given] if isinstance(given, str) else given
        if clip is None:
            faults.append(f'line {line} has no "id"')
        elif not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            faults.append(f'line {line} has no "references", a list of texts')
        elif not all(text.strip() for text in texts):
            faults.append(f"line {line} has an empty reference")
        else:
            references.setdefault(clip, []).extend(texts)
    if not references and not faults:
        faults.append("it is empty")
    _raise_for(file, faults)
    return references


def read_things(file: str | PathLike[str]) -> dict[str, Things]:
    """Read what clips hold, from rows {"id": ..., "sounding": [...], "silent": [...]}, such as references are.

    "unseen" may name those of "sounding" that aren't in the picture.

    Returns:
        By clip; empty if no row has such fields.

    Raises:
        ValueError: if some rows have neither field, something else than texts in them, or unseen things that don't
            sound; all of them are named.
        OSError: if it can't be read.
    """
    things: dict[str, Things] = {}
    faults: list[str] = []
    bare: list[int] = []
    for line, row in _rows(file, faults):
        clip = _clip_of(row)
        if clip is None:
            continue  # `read_references` says so
        if not {"sounding", "silent"} & row.keys():
            bare.append(line)
            continue
        names = [row.get(field) or [] for field in ("sounding", "silent", "unseen")]
        if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
            faults.append(f'line {line} has no lists of texts in "sounding" and "silent"')
        elif set(names[2]) - set(names[0]):
            faults.append(f'line {line} has things in "unseen" that aren\'t in "sounding"')
        else:
            things[clip] = Things(*map(tuple, names))
    if things:
        faults += [f'line {line} has neither "sounding" nor "silent", other lines have' for line in bare]
    _raise_for(file, faults)
    return things


def read_sources(file: str | PathLike[str]) -> dict[str, str]:
    """Read of which film or recording clips are, from rows {"id": ..., "source": ...}, such as references are.

    Returns:
        By clip, of the rows that have it.

    Raises:
        ValueError: for a source that is no text, or two of one clip; all of them are named.
        OSError: if it can't be read.
    """
    sources: dict[str, str] = {}
    faults: list[str] = []
    for line, row in _rows(file, faults):
        clip, source = _clip_of(row), row.get("source")
        if clip is None or source is None:
            continue
        if not isinstance(source, str) or sources.setdefault(clip, source) != source:
            faults.append(f'line {line} has another "source" than a text, or than {clip!r} had before')
    _raise_for(file, faults)
    return sources


def read_labels(file: str | PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read labels of clips, from rows {"id": ..., "kind": "dog", "speech_band": -3.5}, such as references may be.

    Each field but the id and what references have for people is a label by that name: texts, numbers, true and
    false. A list of one text counts as that text; other lists, empty texts and null as no label.

    Returns:
        By label, each clip's value by id. A label that has a value for no clip isn't there.

    Raises:
        ValueError: if rows aren't such, a label's values are of several kinds, a clip has two, or there are none;
            all of them are named.
        OSError: if it can't be read.
    """
    labels: dict[str, dict[str, Any]] = {}
    kinds: dict[str, tuple[str, int]] = {}
    faults: list[str] = []
    for line, row in _rows(file, faults):
        clip = _clip_of(row)
        if clip is None:
            faults.append(f'line {line} has no "id"')
            continue
        for name, given in row.items():
            if name in _NO_LABELS:
                continue
            value = _label_of(given)
            if isinstance(value, dict):
                faults.append(f"line {line} has an object in {name!r}, not a text, a number, true or false")
                continue
            if value is None:
                continue
            kind = {str: "a text", bool: "true or false"}.get(type(value), "a number")
            expected, before = kinds.setdefault(name, (kind, line))
            if kind != expected:
                faults.append(f"{name!r} is {kind} in line {line} and {expected} in line {before}")
            elif labels.setdefault(name, {}).setdefault(clip, value) != value:
                faults.append(f"line {line} has another {name!r} of {clip!r} than a line before")
    if not labels and not faults:
        faults.append("it has no labels")
    _raise_for(file, faults)
    return labels


def _label_of(given: Any) -> Any:
    """The label in a field; None for none."""
    if isinstance(given, list):
        return given[0] if len(given) == 1 and isinstance(given[0], str) and given[0] else None
    return None if given == "" else given


def listed(things: list[str], limit: int = 10) -> str:
    """The first of many things, and how many more there are."""
    more = f" and {len(things) - limit} more" if len(things) > limit else ""
    return "; ".join(things[:limit]) + more


def read_rows(file: str | PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file that `read_captions` takes, with all their fields."""
    return [row for _, row in _rows(file, [])]


def _rows(file: str | PathLike[str], faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines with their number, from 1 on; those that are no JSON objects go to the faults."""
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield number, row
                else:
                    faults.append(f"line {number} is no JSON object")


def _clip_of(row: dict[str, Any]) -> str | None:
    """Numbers and texts name clips; 7 and "7" are one."""
    clip = row.get("id", row.get("clip"))
    return str(clip) if isinstance(clip, str | int) and not isinstance(clip, bool) and clip != "" else None


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


def _raise_for(file: str | PathLike[str], faults: list[str]) -> None:
    if faults:
        raise ValueError(f"{file}: {listed(faults)}")
