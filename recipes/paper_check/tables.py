"""The paper's tables, from `tables.json`. All numbers are decimal, so that halves round exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SIDES = ("raw", "projected")


class Pair(NamedTuple):
    """A figure, raw and projected."""

    raw: Decimal
    projected: Decimal

    @property
    def gain(self) -> Decimal:
        """Projected minus raw, in the figure's own unit."""
        return self.projected - self.raw

    @property
    def loss(self) -> Decimal:
        """Loss in percent of raw; positive if raw is better."""
        return 100 * (self.raw - self.projected) / self.raw


@dataclass(frozen=True)
class Table:
    """A table of the paper. `table["CLAP raw", "BLEU"]` is a cell."""

    number: str
    title: str
    place: str
    columns: list[str]
    rows: dict[str, list[Any]]
    notes: list[dict[str, str]] = field(default_factory=list)

    def __getitem__(self, cell: tuple[str, str]) -> Any:
        row, column = cell
        value = self.rows[row][self.columns.index(column)]
        if value is None:
            raise ValueError(f"{self.name}, {row}, {column}: the extraction damaged this cell")
        return value

    @property
    def name(self) -> str:
        """The table's name in a sentence."""
        return f"Table {self.number}" if self.number.isdecimal() else self.number

    @property
    def measures(self) -> list[str]:
        """Columns, without "raw" and "projected" in their names and without deviations."""
        names = (column.removesuffix(" raw").removesuffix(" projected") for column in self.columns)
        return list(dict.fromkeys(name for name in names if not name.endswith("±")))

    @property
    def encoders(self) -> list[str]:
        """Rows, without "raw" and "projected" in their names."""
        names = (row.removesuffix(" raw").removesuffix(" projected") for row in self.rows)
        return list(dict.fromkeys(names))

    def pair(self, encoder: str, measure: str) -> Pair:
        """Raw and projected figures, from the table's rows or columns."""
        if encoder in self.rows:
            return Pair(*(self[encoder, f"{measure} {side}"] for side in SIDES))
        return Pair(*(self[f"{encoder} {side}", measure] for side in SIDES))

    def pairs(self, measure: str) -> dict[str, Pair]:
        """Pairs of all encoders whose two cells can be read."""
        found = {}
        for encoder in self.encoders:
            try:
                found[encoder] = self.pair(encoder, measure)
            except ValueError:
                continue
        return found


def read_tables(file: Path = HERE / "tables.json") -> dict[str, Table]:
    """The tables by number; figures are by name."""
    found = json.loads(file.read_text(), parse_float=Decimal, parse_int=Decimal)["tables"]
    return {number: Table(number=number, **table) for number, table in found.items()}


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
