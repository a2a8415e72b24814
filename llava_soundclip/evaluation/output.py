"""What the commands of `eval` share: figures in a terminal, and as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_soundclip.running import command_line


def interval_text(figure: Mapping[str, float]) -> str:
    """Such as "0.12 (0.1 to 0.14)"."""
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


def write_figures(out: Path | None, found: Mapping[str, Any]) -> None:
    """Write what was found as JSON, with the command beside it; nothing where there is no file to write."""
    if out is not None:
        out.write_text(json.dumps({**found, "command": command_line()}, indent=2) + "\n", encoding="utf-8")
