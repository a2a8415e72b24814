"""Folders and default settings that the miniature's scripts share. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WEIGHTS = ROOT / "weights" / "demo"
DOCS = ROOT / "docs"
MEASURED = HERE / "figures" / "measured.json"
ABLATIONS = HERE / "figures" / "ablations.json"
