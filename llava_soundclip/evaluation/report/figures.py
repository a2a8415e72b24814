"""Figures of each run for the page, as plain data. The report's JSON has the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava_soundclip.captioning.rows import OPTIONS
from llava_soundclip.evaluation.captions.naming import WHY_BLANK
from llava_soundclip.evaluation.report.read import CRITICS, DIMENSIONS, Run, is_interval
from llava_soundclip.evaluation.report.settings import (
    LOWER_IS_BETTER,
    NEITHER_IS_BETTER,
    ReportSetting,
    controls,
    raw_and_projected,
    read_settings,
)
from llava_soundclip.evaluation.retrieval.measure import FIGURES

BINS = 20  # of a histogram of ranks
OVERALL = "usefulness"  # the judge's dimension that the paper's tables call overall


def retrieval_figures(run: Run) -> dict[str, Any]:
    """Tables and histograms of a retrieval run."""
    data = run.data
    return {
        "file": run.name,
        **{key: data.get(key) for key in ("clips", "rows", "protocol", "right")},
        "figures": {
            alignment: {side: {name: figures[name] for name in FIGURES} for side, figures in sides.items()}
            for alignment, sides in data["figures"].items()
        },
        "gain": {
            side: {name: figures[name] for name in FIGURES} for side, figures in data.get("gain", {}).items()
        },
        "chance": {name: data["chance"][name] for name in FIGURES},
        "histogram": _histograms(data.get("histogram") or {}),
    }


def _histograms(found: Mapping[str, Any]) -> dict[str, Any]:
    """Counts by rank, from 1, in the same bins of equal width for all; the last bin may be narrower."""
    ranks = max((len(counts) for sides in found.values() for counts in sides.values()), default=0)
    if not ranks:
        return {}
    width = -(-ranks // BINS)
    return {
        alignment: {
            side: [
                {
                    "from": first + 1,
                    "to": min(first + width, ranks),
                    "queries": sum(counts[first : first + width]),
                }
                for first in range(0, ranks, width)
            ]
            for side, counts in sides.items()
        }
        for alignment, sides in found.items()
        if sides
    }


def captions_figures(run: Run) -> dict[str, Any]:
    """Tables of a captions run, with the differences between raw and projected, and from each setting's controls."""
    data = run.data
    settings = read_settings(data)
    options = data.get("options") or {}
    pairs = [
        (first.name, second.name) for first, second in (*raw_and_projected(settings), *controls(settings))
    ]
    judge = data.get("judge") or {}
    return {
        "file": run.name,
        "clips": len(data.get("clips") or {}),
        "intervals_over": data.get("intervals_over") or "clips",
        "settings": {
            setting.name: {
                "clips": data["settings"][setting.name].get("clips"),
                "empty": len(data["settings"][setting.name].get("empty") or []),
                "missing": len(data["settings"][setting.name].get("missing") or []),
                **{key: (options.get(setting.name) or {}).get(key) for key in OPTIONS},
                "control": setting.control,
            }
            for setting in settings
        },
        "options_known": any(options.values()),
        "metrics": _parts(data.get("metrics") or {}, settings, pairs, "the file has no figure"),
        "judge": {
            **{key: judge.get(key) or {} for key in ("judge", "counts", "consistency", "usage")},
            "dimensions": _parts(
                judge.get("dimensions") or {}, settings, pairs, "the judge scored none of its captions"
            ),
        }
        if judge
        else {},
    }


def information_figures(run: Run) -> dict[str, Any]:
    """Tables of an information run."""
    data = run.data
    shared, dimension = data["shared"], data["dimension"]
    sides = [side for side in ("raw", "projected") if side in shared]
    return {
        "file": run.name,
        **{key: data.get(key) for key in ("clips", "rows", "drawn", "sources", "geometry_clips", "apart")},
        "sides": sides,
        "at_most": shared["raw"]["linear"]["at_most"],
        "shared": {
            side: {
                **{critic: _without(shared[side][critic], "at_most", "tau") for critic in CRITICS},
                **{key: shared[side][key] for key in ("cka", "p")},
            }
            for side in sides
        },
        "gain": {critic: shared["gain"][critic] for critic in CRITICS if "projected" in sides},
        "unique": {
            label: {
                **{key: part.get(key) for key in ("measure", "clips", "chance")},
                "left_out": _left_out(part),
                **{side: part[side] for side in (*sides, "picture")},
                **({"lost": part["lost"]} if "projected" in sides else {}),
            }
            for label, part in (data.get("unique") or {}).items()
        },
        "unmeasured": data.get("unmeasured") or [],
        "unmatched": data.get("unmatched") or None,
        "dimension": {
            side: {name: dimension[side][name] for name in DIMENSIONS} for side in (*sides, "picture")
        },
    }


def _left_out(part: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of clips and classes left out; empty if none were."""
    found = part.get("left_out") or {}
    return {key: found[key] for key in ("clips", "classes")} if found.get("clips") else {}


def _without(figure: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in figure.items() if name not in names}


def _parts(
    found: Mapping[str, Any],
    settings: Sequence[ReportSetting],
    pairs: Sequence[tuple[str, str]],
    why_blank: str,
) -> dict[str, Any]:
    parts = {}
    for name, part in found.items():
        differences = {(row["first"], row["second"]): row for row in part.get("differences", [])}
        blank = [setting.name for setting in settings if setting.name not in part["figures"]]
        wanted = pairs or list(differences)  # all pairs if it isn't known which settings are comparable
        parts[name] = {
            "better": better(name),
            "figures": {
                setting.name: part["figures"][setting.name]
                for setting in settings
                if setting.name in part["figures"]
            },
            "differences": [row for pair in wanted if (row := _difference(differences, *pair)) is not None],
            "blank": {"settings": blank, "why": WHY_BLANK.get(name, why_blank)} if blank else {},
        }
    return parts


def _difference(
    differences: Mapping[tuple[str, str], Mapping[str, Any]], first: str, second: str
) -> dict[str, Any] | None:
    """First minus second, in whichever order the file has them."""
    if (first, second) in differences:
        return dict(differences[first, second])
    row = differences.get((second, first))
    if row is None:
        return None
    value, low, high = (-row[key] for key in ("value", "high", "low"))
    return {**row, "first": first, "second": second, "value": value, "low": low, "high": high}


def better(name: str) -> str | None:
    """Whether "higher" or "lower" is better, or None for neither."""
    if name in NEITHER_IS_BETTER:
        return None
    return "lower" if name in LOWER_IS_BETTER else "higher"


def quality(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of caption quality in the trade-off and the sweeps: the metrics and the judge's overall."""
    dimensions = shown["judge"].get("dimensions", {})
    overall = {f"judge: {OVERALL}": dimensions[OVERALL]} if OVERALL in dimensions else {}
    return {**shown["metrics"], **overall}


def rows_of(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested data as rows of a table: each figure or text with the path to it. An interval is one row."""
    if isinstance(data, Mapping) and not is_interval(data) and data:
        for key, value in data.items():
            yield from rows_of(value, f"{name} / {key}" if name else str(key))
    elif isinstance(data, list) and any(isinstance(item, Mapping | list) for item in data):
        for number, item in enumerate(data, 1):
            yield from rows_of(item, f"{name} / {number}")
    elif is_interval(data):
        yield name, data
        for key, value in data.items():
            if key not in ("value", "low", "high", "n", "level"):
                yield from rows_of(value, f"{name} / {key}")
    else:
        yield name, data
