"""A claim of the paper, and whether the paper's other figures support it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from tables import Table


class Found(NamedTuple):
    """A recomputed figure, name or list (None if it can't be recomputed), and a note."""

    value: Decimal | str | None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that its other figures imply.

    Attributes:
        place: section, finding or caption; semicolons separate several.
        words: the paper's own words, with " ... " for an omission.
        tables: tables that it is recomputed from.
        says: the figure, name or list that the paper gives.
        recompute: function of the tables; None if they lack the needed figures.
        note: reason why it can't be recomputed.
    """

    place: str
    words: str
    tables: str
    says: str
    recompute: Callable[[dict[str, Table]], Found | Decimal | str] | None
    note: str = ""

    def check(self, tables: dict[str, Table]) -> Checked:
        """Recompute the claim and compare."""
        if self.recompute is None:
            return Checked(self, None, "", self.note)
        found = self.recompute(tables)
        if not isinstance(found, Found):
            found = Found(found)
        if found.value is None:
            return Checked(self, None, "", found.note)
        if isinstance(found.value, str):
            return Checked(self, found.value == self.says, found.value, found.note)
        return Checked(self, agrees(self.says, found.value), shown(self.says, found.value), found.note)


class Checked(NamedTuple):
    """A claim and its result; `agrees` is None if it can't be recomputed."""

    claim: Claim
    agrees: bool | None
    value: str
    note: str


def digits(figure: str) -> Decimal:
    """ "+5.4", "580,147" and "-14.0%" as numbers with the digits that are printed."""
    return Decimal(figure.replace(",", "").rstrip("%"))


def agrees(says: str, value: Decimal) -> bool:
    """Whether a figure rounds (halves away from 0) to the digits that the paper prints."""
    printed = digits(says)
    return value.quantize(printed, rounding=ROUND_HALF_UP) == printed


def shown(says: str, value: Decimal) -> str:
    """A recomputed figure with up to two more digits than the paper prints."""
    printed = digits(says)
    finer = value.quantize(printed.scaleb(-2), rounding=ROUND_HALF_UP)
    exact = finer.quantize(printed, rounding=ROUND_HALF_UP) == finer
    return f"{finer.quantize(printed) if exact else finer:,f}"
