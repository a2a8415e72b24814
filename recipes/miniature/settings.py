"""Folders and default settings that the miniature's scripts share. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WEIGHTS = ROOT / "weights" / "demo"
DOCS = ROOT / "docs"
MEASURED = HERE / "figures" / "measured.json"
ABLATIONS = HERE / "figures" / "ablations.json"
TRADEOFF = HERE / "figures" / "tradeoff.json"

# For each mm_projector, the `tokens` with which it hears best.
TOKENS: dict[str, Literal["zero", "drop"]] = {"prepared": "zero", "stock": "drop"}
PLACES = ("visible", "not visible")  # whether the picture shows the sounding thing
