"""Comparisons of several settings: the trade-off of retrieval and quality, and the sweeps of alpha and k."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llava_soundclip.evaluation.report.figures import quality
from llava_soundclip.evaluation.report.read import Run
from llava_soundclip.evaluation.report.settings import ReportSetting, alignment_name
from llava_soundclip.evaluation.tradeoff import pareto_front

SIDE, FIGURE = (
    "A2V",
    "R@1",
)  # retrieval figure of the trade-off: the paper's Top-1 of pictures found by sounds


def tradeoffs(
    retrievals: Sequence[Run], shown: Mapping[str, Any], settings: Sequence[ReportSetting]
) -> list[dict[str, Any]]:
    """Retrieval and quality of each setting whose alignment was measured in both, and their Pareto front.

    A setting is paired with the retrieval of its encoder, or with any retrieval if one of the two doesn't name an
    encoder. Runs with different protocols, or repeated runs of one encoder, give separate trade-offs. Controls are left
    out.

    Args:
        retrievals: the retrieval runs.
        shown: `captions_figures` of a captions run.
        settings: the settings of that run.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for run in retrievals:
        way = tuple(str(run.data.get(key)) for key in ("protocol", "rows", "right"))
        groups.setdefault((*way, seen[way, _encoder(run)]), []).append(run)
        seen[way, _encoder(run)] += 1
    found = []
    for runs in groups.values():
        parts = {}
        for name, part in quality(shown).items():
            points = _points(runs, part, settings)
            if part["better"] is not None and len(points) > 1:
                sign = 1 if part["better"] == "higher" else -1
                places = {
                    point["setting"]: (point["retrieval"]["value"], sign * point["quality"]["value"])
                    for point in points
                }
                parts[name] = {"better": part["better"], "points": points, "front": pareto_front(places)}
        if parts:
            found.append(
                {
                    "captions": shown["file"],
                    "retrieval": [run.name for run in runs],
                    "side": SIDE,
                    "figure": FIGURE,
                    "quality": parts,
                }
            )
    return found


def _encoder(run: Run) -> str:
    encoder = (run.data.get("provenance") or {}).get("encoder")
    return str(encoder.get("encoder", "")) if isinstance(encoder, Mapping) else str(encoder or "")


def _points(
    runs: Sequence[Run], part: Mapping[str, Any], settings: Sequence[ReportSetting]
) -> list[dict[str, Any]]:
    points = []
    for setting in settings:
        if setting.alpha is None or setting.control is not None or setting.name not in part["figures"]:
            continue
        alignment = alignment_name(setting.alpha)
        for run in runs:
            figure = run.data["figures"].get(alignment, {}).get(SIDE, {}).get(FIGURE)
            if figure is not None and (not setting.encoder or _encoder(run) in ("", setting.encoder)):
                points.append(
                    {
                        "setting": setting.name,
                        "alignment": alignment,
                        "retrieval": {key: figure[key] for key in ("value", "low", "high")},
                        "quality": {
                            key: part["figures"][setting.name][key] for key in ("value", "low", "high")
                        },
                    }
                )
                break
    return points


def retrieval_sweep(shown: Mapping[str, Any]) -> dict[str, Any] | None:
    """Retrieval over alpha; None if there are no mixes."""
    alphas = {
        float(name.removeprefix("alpha ")): name
        for name in shown["figures"]
        if name.startswith("alpha ") and _is_number(name.removeprefix("alpha "))
    }
    if not alphas:
        return None
    alphas |= {alpha: name for alpha, name in ((1.0, "raw"), (0.0, "projected")) if name in shown["figures"]}
    sides = list(next(iter(shown["figures"].values())))
    return {
        "file": shown["file"],
        "over": "alpha",
        "fixed": {},
        "quality": {
            FIGURE: {
                side: [
                    _step(alpha, name, shown["figures"][name][side][FIGURE])
                    for alpha, name in sorted(alphas.items())
                    if side in shown["figures"][name]
                ]
                for side in sides
            }
        },
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _step(at: float, name: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    return {"at": at, "setting": name, **{key: figure[key] for key in ("value", "low", "high")}}


def caption_sweeps(shown: Mapping[str, Any], settings: Sequence[ReportSetting]) -> list[dict[str, Any]]:
    """Quality over alpha and over k, for settings that are alike in all else, with their controls.

    A sweep of alpha has at least one mix with the clip's own sound, a sweep of k at least two budgets. Mixes at several
    budgets are sweeps of alpha, not of k.
    """
    sweeps = []
    for over in ("alpha", "k"):
        groups: dict[tuple[Any, ...], list[ReportSetting]] = {}
        for setting in settings:
            if getattr(setting, over) is not None and (over == "alpha" or setting.alpha in (None, 0, 1)):
                alike = (setting.k if over == "alpha" else setting.alpha, setting.others)
                groups.setdefault(alike, []).append(setting)
        for (other, others), group in groups.items():
            own = {getattr(setting, over) for setting in group if setting.control is None}
            if (over == "alpha" and own <= {0.0, 1.0}) or len(own) < 2:
                continue
            fixed = dict(zip(("encoder", "tokens", "model"), others, strict=True))
            if other is not None:
                fixed["k" if over == "alpha" else "alignment"] = (
                    f"{other:g}" if over == "alpha" else alignment_name(other)
                )
            sweeps.append(
                {
                    "file": shown["file"],
                    "over": over,
                    "fixed": {key: value for key, value in fixed.items() if value},
                    "quality": {
                        name: lines
                        for name, part in quality(shown).items()
                        if (lines := _lines(part["figures"], over, group))
                    },
                }
            )
    return sweeps


def _lines(
    figures: Mapping[str, Any], over: str, group: Sequence[ReportSetting]
) -> dict[str, list[dict[str, Any]]]:
    """Steps by control, "own sound" first."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for setting in sorted(group, key=lambda setting: (setting.control or "", getattr(setting, over))):
        if setting.name in figures:
            line = lines.setdefault(setting.control or "own sound", [])
            line.append(_step(getattr(setting, over), setting.name, figures[setting.name]))
    return lines
