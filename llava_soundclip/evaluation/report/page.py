"""The page: figures, plots and pictures in one HTML file that loads nothing from elsewhere."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from llava_soundclip._extras import require
from llava_soundclip._version import __version__
from llava_soundclip.evaluation.information.limits import LIMITS
from llava_soundclip.evaluation.output import number
from llava_soundclip.evaluation.report import plots
from llava_soundclip.evaluation.report.figures import (
    captions_figures,
    information_figures,
    retrieval_figures,
    rows_of,
)
from llava_soundclip.evaluation.report.pictures import embed
from llava_soundclip.evaluation.report.read import Run, is_interval, read_runs
from llava_soundclip.evaluation.report.series import caption_sweeps, retrieval_sweep, tradeoffs
from llava_soundclip.evaluation.report.settings import ReportSetting, raw_and_projected, read_settings
from llava_soundclip.evaluation.report.summary import (
    captions_summary,
    information_summary,
    retrieval_summary,
    verdict,
)
from llava_soundclip.evaluation.report.verdicts import verdicts
from llava_soundclip.evaluation.retrieval.measure import FIGURES
from llava_soundclip.files import write_file

TITLE = "SoundCLIP evaluation"


def write_report(
    runs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    examples: int = 6,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Any]:
    """Write the report of a folder of runs. The same files give the same bytes.

    Args:
        runs: folder of JSON files that `llava-soundclip eval ... --json` wrote; the page names other JSON files.
        out: the HTML file.
        examples: number of example clips of each captions run, drawn at random.
        seed: random seed for that draw.
        title: title of the page.

    Returns:
        All figures of the page, as plain data for JSON.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no figures, a file is broken, or `examples` is below 0.
        OSError: if a file can't be read or written.
        ImportError: if matplotlib or jinja2 isn't installed.
    """
    if examples < 0:
        raise ValueError(f"examples must be 0 or more, not {examples}")
    found, others = read_runs(runs)
    by_kind: dict[str, list[Run]] = {"retrieval": [], "captions": [], "information": []}
    for run in found:
        by_kind[run.what].append(run)
    retrievals = [retrieval_figures(run) for run in by_kind["retrieval"]]
    captions, series, sweeps = [], [], [retrieval_sweep(shown) for shown in retrievals]
    told = []
    summary = [retrieval_summary(shown) for shown in retrievals]
    pictures: dict[tuple[str, str], dict[str, str]] = {}
    for run in by_kind["captions"]:
        settings = read_settings(run.data)
        shown = captions_figures(run)
        shown["examples"] = _examples(run, settings, examples, seed, pictures)
        captions.append(shown)
        told.append((shown, settings))
        summary += captions_summary(shown, settings)
        series += tradeoffs(by_kind["retrieval"], shown, settings)
        sweeps += caption_sweeps(shown, settings)
    information = [information_figures(run) for run in by_kind["information"]]
    for shown in information:
        summary += information_summary(shown)
    report = {
        "what": "report",
        "title": title or TITLE,
        "library": __version__,
        "seed": seed,
        "verdicts": verdicts(retrievals, told),
        "summary": summary,
        "retrieval": retrievals,
        "captions": captions,
        "tradeoff": series,
        "sweeps": [sweep for sweep in sweeps if sweep is not None],
        "information": information,
        "provenance": [
            {
                "file": run.name,
                "sha256": run.sha256,
                "command": run.data.get("command"),
                "provenance": run.data.get("provenance"),
                "made_by": {
                    name: part.get("made_by")
                    for name, part in (run.data.get("metrics") or {}).items()
                    if part.get("made_by")
                }
                if run.what == "captions"
                else {},
            }
            for run in found
        ],
        "others": others,
    }
    write_file(out, _page(report, pictures))
    return report


def drawn_examples(clips: Sequence[str], count: int, seed: int) -> list[str]:
    """The clips of a run that the page shows, by id."""
    return random.Random(seed).sample(sorted(clips), min(count, len(clips)))


def _examples(
    run: Run,
    settings: Sequence[ReportSetting],
    examples: int,
    seed: int,
    pictures: dict[tuple[str, str], dict[str, str]],
) -> list[dict[str, Any]]:
    """Clips drawn with the seed; their pictures are added to `pictures`, by file and clip."""
    clips = run.data.get("clips") or {}
    drawn = drawn_examples(list(clips), examples, seed)
    pair = next(
        ([raw.name, projected.name] for raw, projected in raw_and_projected(settings)),
        [setting.name for setting in settings[:2]],
    )
    shown = []
    for id in drawn:
        clip = clips[id]
        pictures[run.name, id], missing = embed(run, clip)
        captions = clip.get("captions") or {}
        order = [setting.name for setting in settings if setting.name in captions]
        beside = [name for name in pair if name in order]
        shown.append(
            {
                "clip": id,
                "references": clip.get("references", []),
                "captions": {name: captions[name] for name in order},
                "scores": clip.get("scores") or {},
                "beside": beside,
                "below": [name for name in order if name not in beside],
                "missing": missing,
            }
        )
    return shown


def _page(report: Mapping[str, Any], pictures: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    jinja2 = require("jinja2", extra="evaluation")
    markupsafe = require("markupsafe", extra="evaluation")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "verdict": verdict}
    environment.tests["interval"] = is_interval
    numbers = count(1)

    def drawing(draw: Callable[..., str]) -> Callable[..., str]:
        """Mark a plot as safe HTML: the names in it are already escaped."""
        return lambda *data: markupsafe.Markup(_with_own_ids(draw(*data), next(numbers)))

    environment.globals |= {
        "FIGURES": FIGURES,
        "LIMITS": LIMITS,
        "rows_of": rows_of,
        "text": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "dots": drawing(_dots),
        "probe_plot": drawing(_probe_plot),
        "sweep_plot": drawing(_sweep_plot),
        "front_plot": drawing(_front_plot),
        "histogram_plot": drawing(_histogram_plot),
    }
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(report=report, pictures=pictures)
    return page


def _with_own_ids(svg: str, number: int) -> str:
    """Make a plot's ids unique within the page."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>plot{number}-", svg)


def _dots(name: str, part: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{setting} (control)" if settings[setting]["control"] else setting,
            figure,
            bool(settings[setting]["control"]),
        )
        for setting, figure in part["figures"].items()
    ]
    return plots.dots(name, rows, towards=_better(part["better"]))


def _probe_plot(label: str, part: Mapping[str, Any]) -> str:
    chance = dict.fromkeys(("value", "low", "high"), part["chance"])
    rows = [(side, part[side], False) for side in ("raw", "projected", "picture") if side in part]
    return plots.dots(label, [*rows, ("chance", chance, True)], towards=part["measure"])


def _better(better: str | None) -> str:
    return f"{better} is better" if better else ""


def _sweep_plot(name: str, sweep: Mapping[str, Any]) -> str:
    control = "own sound" if sweep["over"] == "k" or "own sound" in sweep["quality"][name] else None
    over = "alpha: 0 projected, 1 raw" if sweep["over"] == "alpha" else "k, patches that stay"
    title = f"{name} over {sweep['over']}, {sweep['file']}"
    return plots.curves(title, sweep["quality"][name], over=over, control=control)


def _front_plot(name: str, part: Mapping[str, Any], tradeoff: Mapping[str, Any]) -> str:
    return plots.front(
        f"{name} by {tradeoff['figure']}",
        part["points"],
        part["front"],
        x=f"{tradeoff['figure']}, {tradeoff['side']}",
        y=name,
        lower=part["better"] == "lower",
    )


def _histogram_plot(side: str, shown: Mapping[str, Any]) -> str:
    bins = {alignment: sides[side] for alignment, sides in shown["histogram"].items() if sides.get(side)}
    chosen = {name: bins[name] for name in ("raw", "projected") if name in bins} or bins
    return plots.histogram(f"Ranks, {side}", chosen, chance=shown["right"] == "pair")
