"""Cells of tables and datasets: texts, start and end times, and ids made from them."""

import math
from collections.abc import Mapping
from typing import Any

from llava_soundclip._text import as_unicode, printable
from llava_soundclip.clips.clip import times_text


def as_text(value: Any) -> str | None:
    """A cell as text; None if it is empty. Bytes of a file name that aren't Unicode are escaped."""
    if value is None or value == "":
        return None
    return as_unicode(str(value))


def read_times(cells: Mapping[str, Any]) -> tuple[float | None, float | None, str | None]:
    """Start and end in seconds, and the fault if they are invalid. Each is None if there is none."""
    seconds: list[float | None] = []
    for name in ("start", "end"):
        value = cells.get(name)
        if value is None or value == "":
            seconds.append(None)
            continue
        try:
            seconds.append(float(value))
        except (TypeError, ValueError):
            return None, None, f"its {name} is {printable(repr(value), 100)}, not seconds"
    start, end = seconds
    if not all(value is None or 0 <= value < math.inf for value in seconds):
        return None, None, f"it goes {times_text(start, end)}: times must be 0 or more, in seconds"
    if end is not None and end <= (start or 0.0):
        return None, None, f"it goes {times_text(start, end)}: it ends before it begins"
    return start, end, None


def with_times(name: str, start: float | None, end: float | None) -> str:
    """An id from a video's name and times: "a.mp4#1.5-4.5"."""
    if start is None and end is None:
        return name
    texts = ["" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") for value in (start, end)]
    return f"{name}#{texts[0] or '0'}-{texts[1]}"
