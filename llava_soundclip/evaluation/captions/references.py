"""References and things in clips, from JSON Lines, and their match with captions."""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from llava_soundclip.captioning.lines import clip_of, listed, raise_for, rows_of

_NO_LABELS = ("id", "clip", "source", "references", "reference", "caption", "image")


@dataclass(frozen=True)
class Things:
    """The things in a clip.

    Attributes:
        sounding: names of the things that are heard.
        silent: names of the things that are only seen.
        unseen: things of `sounding` that aren't in the picture: a caption that names them has heard them.
    """

    sounding: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def read_references(file: str | PathLike[str]) -> dict[str, list[str]]:
    """Read references that people wrote for clips.

    Rows are {"id": ..., "references": [...]}, or have "reference" or "caption" with one text. A clip may have several
    rows, as in AudioCaps' tables; all of their references count.

    Args:
        file: JSON Lines file.

    Returns:
        References by clip, at least one for each.

    Raises:
        ValueError: if rows are malformed or have an empty reference; the message names all of them.
        OSError: if the file can't be read.
    """
    references: dict[str, list[str]] = {}
    faults: list[str] = []
    for line, row in rows_of(file, faults):
        clip = clip_of(row)
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
    raise_for(file, faults)
    return references


def read_things(file: str | PathLike[str]) -> dict[str, Things]:
    """Read the things in clips from rows {"id": ..., "sounding": [...], "silent": [...]}, as in a file of references.

    "unseen" may name the things of "sounding" that aren't in the picture.

    Args:
        file: JSON Lines file.

    Returns:
        Things by clip; empty if no row has these fields.

    Raises:
        ValueError: if some rows have neither field, fields that aren't lists of texts, or unseen things that don't
            sound; the message names all of them.
        OSError: if the file can't be read.
    """
    things: dict[str, Things] = {}
    faults: list[str] = []
    bare: list[int] = []
    for line, row in rows_of(file, faults):
        clip = clip_of(row)
        if clip is None:
            continue  # `read_references` reports it
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
    raise_for(file, faults)
    return things


def read_sources(file: str | PathLike[str]) -> dict[str, str]:
    """Read the video or recording of each clip from rows {"id": ..., "source": ...}, as in a file of references.

    Args:
        file: JSON Lines file.

    Returns:
        Sources by clip, for the rows that have one.

    Raises:
        ValueError: if a source isn't a text, or a clip has two; the message names all of them.
        OSError: if the file can't be read.
    """
    sources: dict[str, str] = {}
    faults: list[str] = []
    for line, row in rows_of(file, faults):
        clip, source = clip_of(row), row.get("source")
        if clip is None or source is None:
            continue
        if not isinstance(source, str) or sources.setdefault(clip, source) != source:
            faults.append(f'line {line} has another "source" than a text, or than {clip!r} had before')
    raise_for(file, faults)
    return sources


def match_ids(clips: Iterable[str], references: Iterable[str]) -> dict[str, str]:
    """Match references to clips whose id is another path to the same name.

    Equal ids belong together. Otherwise "clips/a.mp4" matches "a.mp4", in either direction, if the match is unique.

    Args:
        clips: ids of the captioned clips.
        references: ids of the references.

    Returns:
        The clip of each reference that is matched by name.

    Raises:
        ValueError: if a match is ambiguous; the message names the ids.
    """
    own, theirs = dict.fromkeys(clips), dict.fromkeys(references)
    left = [clip for clip in own if clip not in theirs]
    by_name: dict[str, list[str]] = {}
    for reference in theirs:
        if reference not in own:
            by_name.setdefault(_name(reference), []).append(reference)
    found: dict[str, list[str]] = {}
    faults = []
    for clip in left:
        meant = [reference for reference in by_name.get(_name(clip), []) if _is_same_path(clip, reference)]
        if len(meant) > 1:
            faults.append(f"clip {clip!r} may match {' or '.join(map(repr, meant))}")
        for reference in meant:
            found.setdefault(reference, []).append(clip)
    faults += [
        f"reference {reference!r} may match {' or '.join(map(repr, several))}"
        for reference, several in found.items()
        if len(several) > 1
    ]
    if faults:
        raise ValueError(f"ids of clips and references match ambiguously by name: {listed(faults)}")
    return {reference: clip for reference, (clip,) in found.items()}


def _name(id: str) -> str:
    return id.rpartition("/")[2]


def _is_same_path(one: str, other: str) -> bool:
    """Whether one path is the end of the other."""
    shorter, longer = sorted((one, other), key=len)
    return longer.endswith(f"/{shorter.removeprefix('./')}")


def read_labels(file: str | PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read labels of clips from rows {"id": ..., "kind": "dog", "speech_band": -3.5}, as in a file of references.

    Each field is a label of that name, except the id and the fields of references. Values are texts, numbers, true or
    false. A list of one text counts as that text; other lists, empty texts and null count as no label.

    Args:
        file: JSON Lines file.

    Returns:
        By label, the value of each clip by id. Labels without any value are left out.

    Raises:
        ValueError: if rows are malformed, a label mixes types, a clip has two values, or there are no labels; the
            message names all of them.
        OSError: if the file can't be read.
    """
    labels: dict[str, dict[str, Any]] = {}
    kinds: dict[str, tuple[str, int]] = {}
    faults: list[str] = []
    for line, row in rows_of(file, faults):
        clip = clip_of(row)
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
    raise_for(file, faults)
    return labels


def _label_of(given: Any) -> Any:
    """The label in a field, or None."""
    if isinstance(given, list):
        return given[0] if len(given) == 1 and isinstance(given[0], str) and given[0] else None
    return None if given == "" else given
