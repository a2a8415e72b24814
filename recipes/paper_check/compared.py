"""The rest of the page: figures that are in two tables, and Finding 6 by the library's `analyse`."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import combinations
from statistics import correlation

from tables import SIDES, Table, grid

from llava_soundclip.evaluation.tradeoff import Tradeoff, analyse

DATA_SETS = {"1": "AudioCaps", "3": "AudioCaps", "4": "AVE-2", "5": "TVSum", "6": "Ego4D"}
GENERATION = ("Figure 6", "12")
SHOWN = 5  # maximum number of differing cells shown
R = "0.89"  # from Finding 6, like the prices
PRICES = {"Wav2CLIP": "0.05", "CLAP": "0.65"}


def cells(table: Table) -> dict[str, Decimal]:
    """A table's figures, by names that are shared by all tables."""
    if table.number in ("8", "10"):
        row = "Last-n layers (n={})" if table.number == "10" else "{}"
        return {f"{row.format(r)}, {way}": table[r, way] for r in table.rows for way in ("A2V", "V2A")}
    if table.number == "13":
        found = {}
        for row in table.rows:
            encoder, side, budget = row.split("-")
            for measure in table.measures:
                name = f"{encoder} {'raw' if side == 'raw' else 'projected'}, {measure}, k={budget[:-2]}"
                found[name] = table[row, measure]
        return found
    found = {}
    for measure in table.measures:
        for encoder, pair in table.pairs(measure).items():
            what = measure
            if table.number in DATA_SETS:
                what = f"{DATA_SETS[table.number]} {measure}"
            elif table.number == "2":
                what = f"{measure} T1"
            elif table.number in GENERATION:
                what = f"{measure}, k=150"
            elif table.number == "14":
                what = f"GPT-4o, k={measure}"
            elif table.number == "11" and measure == "Overall":
                encoder, budget = encoder.split("-")
                what = f"GPT-4o, k={budget[:-2]}"
            found |= {f"{encoder} {side}, {what}": figure for side, figure in zip(SIDES, pair, strict=True)}
    return found


def compared_section(tables: dict[str, Table]) -> Iterator[str]:
    """All pairs of tables with common cells."""
    names = [
        number for number in tables if number not in ("2.1", "Figure 5", "Figure 9", "7", "9", "15", "16")
    ]
    every = {number: cells(tables[number]) for number in names}
    rows = []
    for first, second in combinations(names, 2):
        common = [name for name in every[first] if name in every[second]]
        if not common:
            continue
        apart = {
            name: (every[first][name], every[second][name])
            for name in common
            if every[first][name] != every[second][name]
        }
        widest = sorted(apart, key=lambda name: -abs(apart[name][0] - apart[name][1]))[:SHOWN]
        which = "; ".join(f"{name}: {apart[name][0]} and {apart[name][1]}" for name in widest)
        both = f"{tables[first].name}, {tables[second].name}"
        rows.append([both, str(len(common)), str(len(apart)), which])
    yield "## The same figure in two tables\n"
    yield f"At most {SHOWN} cells are listed, those that differ most.\n"
    yield grid(("tables", "cells in both", "differ", "which"), rows)
    shares = []
    own = {name: figure for name, figure in every["Figure 6"].items() if name.startswith("Whisper ")}
    for number in ("11", "13", "14"):
        theirs = {name: every[number].get(name.replace("Whisper", "WhisperCLIP")) for name in own}
        common = [name for name in own if theirs[name] is not None]
        alike = sum(theirs[name] == own[name] for name in common)
        shares.append(f"{alike} of {len(common)} in {tables[number].name}")
    yield f"Cells in which WhisperCLIP has Whisper's figure from Figure 6: {', '.join(shares)}.\n"


def tradeoff_section(tables: dict[str, Table]) -> Iterator[str]:
    """Finding 6 for every gain and every loss in the tables."""
    lost = {
        (unit, measure): {
            name: float(figure(pair)) for name, pair in tables["Figure 6"].pairs(measure).items()
        }
        for unit, figure in (("percent", lambda pair: pair.loss), ("points", lambda pair: -pair.gain))
        for measure in tables["Figure 6"].measures
    }
    gained = {
        (number, measure): {name: float(pair.gain) for name, pair in tables[number].pairs(measure).items()}
        for number in ("1", "2", "3", "4", "5", "6")
        for measure in tables[number].measures
    }

    def analysed(gain: tuple[str, str], loss: tuple[str, str]) -> Tradeoff:
        return analyse(gained[gain], {name: lost[loss][name] for name in gained[gain]})

    yield "## Finding 6\n"
    yield (
        "Top-1 gain on AudioCaps, audio to video (Table 3), and the loss of GPT-4o's score in percent (Table 12), "
        "by `llava_soundclip.evaluation.tradeoff.analyse`, with 95 % intervals in brackets:\n"
    )
    yield f"```text\n{analysed(('3', 'A2V T1'), ('percent', 'GPT-4o'))}\n```\n"
    yield "r for other data sets and measures, Top-1, audio to video, percent. Table 1 has Whisper as a sixth encoder:\n"
    measures = tables["Figure 6"].measures
    rows = [
        [f"{DATA_SETS[number]} ({tables[number].name})"]
        + [
            str(analysed((number, "A2V T1"), ("percent", measure)).intervals["pearson_r"])
            for measure in measures
        ]
        for number in ("3", "1", "4", "5", "6")
    ]
    yield grid(("gain", *measures), rows)
    r, priced = {}, 0
    for gain, points in gained.items():
        for loss, lost_by in lost.items():
            r[gain, loss] = correlation(list(points.values()), [lost_by[name] for name in points])
            priced += all(f"{lost_by[name] / points[name]:.2f}" == price for name, price in PRICES.items())
    near = min(r, key=lambda choice: abs(r[choice] - float(R)))
    equal = sum(f"{each:.2f}" == R for each in r.values())
    (number, column), (unit, measure) = near
    yield (
        f"Over all {len(r)} choices of a column of Tables 1 to 6 and a measure, in percent or in points, r is "
        f"between {min(r.values()):.2f} and {max(r.values()):.2f}; {equal} of them round to {R}. The nearest is "
        f"{r[near]:.3f}: {tables[number].name}, {column}, and {measure} in {unit}. "
        f"{priced} of them cost {' and '.join(f'{price} per point for {name}' for name, price in PRICES.items())}.\n"
    )
