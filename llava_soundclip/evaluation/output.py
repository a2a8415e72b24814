"""Figures as text and as JSON, for the commands of `eval` and the report."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_soundclip.files import write_file
from llava_soundclip.running import command_line


def number(value: Any) -> str:
    """A figure as text, with three significant digits; whole numbers and all above 1,000 in full."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"
    return str(value)


def interval_text(figure: Mapping[str, Any]) -> str:
    """An interval's fields as text, such as "0.12 (0.1 to 0.14)"."""
    return f"{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def hash_of(path: str | os.PathLike[str]) -> str:
    """The first 16 digits of a file's SHA-256, for provenance."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def write_figures(out: Path | None, found: Mapping[str, Any]) -> None:
    """Write figures and the command as JSON; do nothing without a file."""
    if out is not None:
        write_file(out, json.dumps({**found, "command": command_line()}, indent=2, allow_nan=False) + "\n")
