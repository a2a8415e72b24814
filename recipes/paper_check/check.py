"""Recompute the figures that the paper derives from its own tables, and write docs/paper-check.md between its marks.

python recipes/paper_check/check.py

`tables.json` has the tables, `claims.py` the claims, `compared.py` the rest of the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from claim import Checked
from claims import CLAIMS
from compared import compared_section, tradeoff_section
from tables import HERE, Table, grid, read_tables

PAGE = HERE.parents[1] / "docs" / "paper-check.md"
BEGIN, END = "<!-- recomputed -->", "<!-- /recomputed -->"


def claims_section(checked: Sequence[Checked]) -> Iterator[str]:
    """The claims that agree, that don't, and that can't be recomputed."""
    groups = {agrees: [each for each in checked if each.agrees is agrees] for agrees in (False, None, True)}
    yield (
        f"{len(checked)} claims: {len(groups[True])} agree with the tables, {len(groups[False])} don't, "
        f"{len(groups[None])} can't be recomputed.\n"
    )
    for agree, title in ((False, "Doesn't agree"), (None, "Can't be recomputed"), (True, "Agrees")):
        yield f"## {title}\n"
        if agree is None:
            rows = [
                [each.claim.place, f'"{each.claim.words}"', each.claim.says, each.note]
                for each in groups[agree]
            ]
            yield grid(("where", "the paper's words", "says", "why not"), rows)
            continue
        rows = [
            [
                each.claim.place,
                f'"{each.claim.words}"',
                each.claim.says,
                f"**{each.value}**" if agree is False else each.value,
                each.claim.tables,
                each.note,
            ]
            for each in groups[agree]
        ]
        yield grid(("where", "the paper's words", "says", "recomputed", "from", ""), rows)


def damage_section(tables: dict[str, Table]) -> Iterator[str]:
    """Cells that the extraction damaged."""
    yield "## Unclear cells of the extracted text\n"
    rows = [
        [table.name, note["row"], note.get("column", "the row's name"), note["stands"], note["why"]]
        for table in tables.values()
        for note in table.notes
    ]
    yield grid(("table", "row", "column", "extracted", ""), rows)


def render(tables: dict[str, Table]) -> str:
    """Everything between the page's marks."""
    parts = [
        *claims_section([claim.check(tables) for claim in CLAIMS]),
        *compared_section(tables),
        *tradeoff_section(tables),
        *damage_section(tables),
    ]
    return "\n".join(parts)


def write_page(page: Path, tables: dict[str, Table]) -> None:
    """Write everything between the page's marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{render(tables)}{END}{after}")


if __name__ == "__main__":
    write_page(PAGE, read_tables())
