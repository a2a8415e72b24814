"""The runs of a folder: JSON files that `llava-soundclip eval ... --json` wrote, checked before use."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_soundclip.evaluation.retrieval.measure import FIGURES
from llava_soundclip.files import parse_json

CRITICS = ("cosine", "linear")
DIMENSIONS = ("two_nn", "participation_ratio")


@dataclass(frozen=True)
class Run:
    """One file of figures.

    Attributes:
        file: path of the file.
        sha256: SHA-256 of its bytes, in hex.
        data: parsed content of the file.
    """

    file: Path
    sha256: str
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name, under which its figures are shown."""
        return self.file.name

    @property
    def what(self) -> str:
        """The kind of run: "retrieval", "captions" or "information"."""
        return self.data["what"]


def read_runs(folder: str | os.PathLike[str]) -> tuple[list[Run], list[str]]:
    """Read a folder's .json files in the order of their names; subfolders are ignored.

    Returns:
        The runs, and the names of other JSON files. A report's own JSON is in neither.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a file is no JSON or lacks figures, or if no file has any; the message names it.
        OSError: if a file can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    runs, others = [], []
    for file in sorted(folder.glob("*.json")):
        content = file.read_bytes()
        try:
            data = parse_json(content)
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        what = data.get("what") if isinstance(data, dict) else None
        if what == "report":
            continue
        if not isinstance(what, str) or what not in _CHECKS:
            others.append(file.name)
            continue
        try:
            _CHECKS[what](data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        runs.append(Run(file, hashlib.sha256(content).hexdigest(), data))
    if not runs:
        raise ValueError(
            f"{folder} holds no figures: write some there with `llava-soundclip eval retrieval ... --json "
            f"{folder / 'retrieval.json'}` or `eval captions`"
        )
    return runs, others


def is_interval(value: Any) -> bool:
    """Whether this is an `Interval`'s fields, perhaps with more."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def _check_retrieval(data: Mapping[str, Any]) -> None:
    for alignment, sides in _mapping(data, "figures").items():
        _check_sides(sides, f"figures of {alignment}")
    _check_sides(_mapping(data, "gain", optional=True), "gain")
    chance = _mapping(data, "chance")
    for name in FIGURES:
        _check_number(chance.get(name), f"chance: {name}")
    histogram = _mapping(data, "histogram", optional=True)
    for alignment in histogram:
        for side in _mapping(histogram, alignment):
            counts = histogram[alignment][side]
            if not isinstance(counts, list):
                raise TypeError(f"histogram of {alignment}, {side} is no list")
            for count in counts:
                _check_number(count, f"histogram of {alignment}, {side}")


def _check_sides(sides: Any, where: str) -> None:
    if not isinstance(sides, Mapping):
        raise TypeError(f"{where} has no sides")
    for side, figures in sides.items():
        for name in FIGURES:
            _check_interval(
                figures.get(name) if isinstance(figures, Mapping) else None, f"{where}, {side}: {name}"
            )


def _check_captions(data: Mapping[str, Any]) -> None:
    settings = _mapping(data, "settings")
    if not settings:
        raise ValueError("it has no settings")
    for name in settings:
        _mapping(settings, name)
    options = _mapping(data, "options", optional=True)
    for name in options:
        _mapping(options, name)
    judge = _mapping(data, "judge", optional=True)
    for part in (data, judge):
        found = _mapping(part, "metrics" if part is data else "dimensions", optional=True)
        for name in found:
            _check_part(_mapping(found, name), name)
    counts = _mapping(judge, "counts", optional=True)
    for name in counts:
        _mapping(counts, name)
    consistency = _mapping(judge, "consistency", optional=True)
    for name in consistency:
        for figure in ("equal", "difference"):
            _check_interval(_mapping(consistency, name).get(figure), f"the judge's {name}: {figure}")
    for id, clip in _mapping(data, "clips", optional=True).items():
        if not isinstance(clip, Mapping):
            raise TypeError(f"clip {id} is no object")
        texts = [*_list(clip, "references"), *_mapping(clip, "captions", optional=True).values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"clip {id} has captions or references that are no texts")
        scores = _mapping(clip, "scores", optional=True)
        for name in scores:
            for value in _mapping(scores, name).values():
                _check_number(value, f"clip {id}: {name}")


def _check_information(data: Mapping[str, Any]) -> None:
    shared = _mapping(data, "shared")
    sides = ["raw", *(["projected"] if "projected" in shared else [])]
    for side in sides:
        found = _mapping(shared, side)
        for critic in CRITICS:
            _check_interval(found.get(critic), f"the {critic} bound of {side}")
        _check_half(found.get("cka"), f"the CKA of {side}")
        _check_number(found.get("p"), f"p of {side}")
    _check_number(shared["raw"]["linear"].get("at_most"), "what the linear bound of raw is at most")
    if "projected" in sides:
        gain = _mapping(shared, "gain")
        for critic in CRITICS:
            _check_interval(gain.get(critic), f"the gain of the {critic} bound")
    unique = _mapping(data, "unique", optional=True)
    for label in unique:
        part, where = _mapping(unique, label), f"the label {label!r}"
        if not isinstance(part.get("measure"), str):
            raise TypeError(f"{where} has no measure")
        _check_number(part.get("chance"), f"{where}: chance")
        for side in (*sides, "picture", *(["lost"] if "projected" in sides else [])):
            _check_interval(part.get(side), f"{where}: {side}")
        left_out = _mapping(part, "left_out", optional=True)
        for what in ("clips", "classes") if left_out else ():
            _check_number(left_out.get(what), f"{where}: {what} left out")
    dimension = _mapping(data, "dimension")
    for side in (*sides, "picture"):
        found = _mapping(dimension, side)
        for name in DIMENSIONS:
            _check_half(found.get(name), f"the {name} of {side}")
    if not all(isinstance(sentence, str) for sentence in _list(data, "unmeasured")):
        raise TypeError('"unmeasured" has something else than sentences')


def _check_part(part: Mapping[str, Any], name: str) -> None:
    for setting, figure in _mapping(part, "figures").items():
        _check_interval(figure, f"{name} of {setting}")
    for row in _list(part, "differences"):
        if not isinstance(row, Mapping) or not all(isinstance(row.get(side), str) for side in _SIDES):
            raise ValueError(f"a difference of {name} doesn't name two settings")
        _check_interval(row, f"{name}, {row['first']} - {row['second']}")


_SIDES = ("first", "second")
_CHECKS = {
    "retrieval": _check_retrieval,
    "captions": _check_captions,
    "information": _check_information,
}


def _mapping(data: Mapping[str, Any], key: str, *, optional: bool = False) -> Mapping[str, Any]:
    found = data.get(key)
    if found is None and optional:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f'there is no "{key}", or it is no object')
    return found


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise TypeError(f'"{key}" is no list')
    return found


def _check_interval(figure: Any, where: str) -> None:
    if not is_interval(figure):
        raise ValueError(f"{where} has no value with an interval")
    for key in ("value", "low", "high"):
        _check_number(figure[key], f"{where}: {key}")


def _check_half(figure: Any, where: str) -> None:
    _check_interval(figure, where)
    _check_number(figure.get("half"), f"{where}: half")


def _check_number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}, not a number")
