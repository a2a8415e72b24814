"""A reader of JSON Lines with one row per clip, which names every fault of a file."""

import codecs
import json
from collections.abc import Iterator
from os import PathLike
from typing import Any

from llava_soundclip.files import parse_json


def rows_of(file: str | PathLike[str], faults: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their line numbers, which begin at 1. Lines that aren't JSON objects are added to the faults."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                row = None
            except ValueError as error:
                faults.append(f"line {number}: {error}")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                faults.append(f"line {number} isn't a JSON object")


def clip_of(row: dict[str, Any]) -> str | None:
    """The clip that a row names, by a string or a number: 7 and "7" are the same."""
    clip = row.get("id", row.get("clip"))
    return str(clip) if isinstance(clip, str | int) and not isinstance(clip, bool) and clip != "" else None


def raise_for(file: str | PathLike[str], faults: list[str]) -> None:
    """Raise a ValueError that lists the faults of a file, if there are any."""
    if faults:
        raise ValueError(f"{file}: {listed(faults)}")


def listed(things: list[str], limit: int = 10) -> str:
    """The first few of many things, and the number of the others."""
    more = f" and {len(things) - limit} more" if len(things) > limit else ""
    return "; ".join(things[:limit]) + more
