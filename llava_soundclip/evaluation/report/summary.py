"""The figures in words: "above" or "below" only if the whole interval is."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava_soundclip.evaluation.output import interval_text, number
from llava_soundclip.evaluation.report.figures import better, quality
from llava_soundclip.evaluation.report.settings import ReportSetting, controls, raw_and_projected

UNTOLD = "can't be told"


def verdict(difference: Mapping[str, Any]) -> str:
    """ "above" or "below" if the whole interval is, else "can't be told", as for a single clip."""
    if difference.get("n", 2) >= 2:
        if difference["low"] > 0:
            return "above"
        if difference["high"] < 0:
            return "below"
    return UNTOLD


def retrieval_summary(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Does projecting gain retrieval, and is either better than chance?"""
    answers = []
    for side in next(iter(shown["figures"].values()), {}):
        finds = {"A2V": "Sounds find pictures", "V2A": "Pictures find sounds"}.get(side, side)
        for name in ("R@1", "mean_rank"):
            chance = shown["chance"][name]
            gain = shown["gain"].get(side, {}).get(name)
            against_chance = ", ".join(
                f"{alignment} {interval_text(sides[side][name])} {_against_chance(sides[side][name], chance)}"
                for alignment, sides in shown["figures"].items()
                if alignment in ("raw", "projected") and side in sides
            )
            answers.append(
                f"{finds}, {_labelled(name)}: {'' if gain is None else _projected(gain)}{against_chance}, which "
                f"is {number(chance)}."
            )
    return {
        "file": shown["file"],
        "question": "Does projecting gain retrieval?"
        if shown["gain"]
        else "Is retrieval better than chance?",
        "measured": f"{number(shown['clips'])} clips ({shown['rows']}), {shown['protocol']}",
        "answers": answers,
    }


def _projected(gain: Mapping[str, Any]) -> str:
    told = verdict(gain)
    if told == UNTOLD:
        return f"projected can't be told from raw, {interval_text(gain)}; "
    return f"projected is {told} raw by {apart(gain)}; "


def _against_chance(figure: Mapping[str, Any], chance: float) -> str:
    told = verdict({**figure, "low": figure["low"] - chance, "high": figure["high"] - chance})
    return "can't be told from chance" if told == UNTOLD else f"is {told} chance"


def _labelled(name: str) -> str:
    shown = name.replace("_", " ")
    return shown if better(name) == "higher" else f"{shown} ({better(name) or 'neither'} is better)"


def captions_summary(shown: Mapping[str, Any], settings: Sequence[ReportSetting]) -> list[dict[str, Any]]:
    """Does projecting cost quality, and does the sound help, compared with noise in its place?"""
    asked = [
        ("Does projecting cost quality?", "Raw", "projected", raw, projected)
        for raw, projected in raw_and_projected(settings)
    ] + [
        ("Does the sound help?", "Raw" if own.alpha else "Projected", "its noise control", own, control)
        for own, control in controls(settings)
        if control.control == "noise" and own.alpha in (0, 1)
    ]
    answered = []
    for question, one, other, first, second in asked:
        differences = _differences(shown, first.name, second.name)
        if not differences:
            continue
        told: dict[str, list[str]] = {"above": [], "below": [], UNTOLD: []}
        for name, difference in differences:
            answer = verdict(difference)
            told[answer].append(_labelled(name) + ("" if answer == UNTOLD else f" by {apart(difference)}"))
        answered.append(
            {
                "file": shown["file"],
                "question": question,
                "measured": f"{first.name} against {second.name}, "
                f"{number(max(row.get('n', 0) for _, row in differences))} {shown['intervals_over']}",
                "answers": [
                    f"{one} can't be told from {other} in {'; '.join(names)}."
                    if answer == UNTOLD
                    else f"{one} is {answer} {other} in {'; '.join(names)}."
                    for answer, names in told.items()
                    if names
                ],
            }
        )
    return answered


def information_summary(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Does projecting bring shared information into a cosine's reach, and lose what only the sound tells?"""
    shared, unique = [], []
    for critic, whose in (("cosine", "a cosine's"), ("linear", "a linear map's")):
        gain = _projected(shown["gain"][critic]) if shown["gain"] else ""
        each = ", ".join(
            f"{side} {interval_text(found[critic])} shows {_something(found[critic])}"
            for side, found in shown["shared"].items()
        )
        shared.append(f"Within {whose} reach, in nats (at most {number(shown['at_most'])}): {gain}{each}.")
    for label, part in shown["unique"].items():
        change = f"{_raw_above_projected(part['lost'])}; " if "lost" in part else ""
        each = ", ".join(
            f"{side} {interval_text(part[side])} {_against_chance(part[side], part['chance'])}"
            for side in (*shown["sides"], "picture")
        )
        unique.append(f"{label}, {part['measure']} (chance {number(part['chance'])}): {change}{each}.")
    asked = (
        ("Does projecting bring shared information into a cosine's reach?", shared),
        ("Does projecting lose what only the sound tells?", unique),
    )
    if not shown["gain"]:
        asked = (
            ("Do sound and picture share information?", shared),
            ("Does the sound tell what the picture doesn't?", unique),
        )
    clips, rows, sources = (number(shown[key]) for key in ("clips", "rows", "sources"))
    return [
        {
            "file": shown["file"],
            "question": question,
            "measured": f"{clips} clips ({rows}) of {sources} sources",
            "answers": answers,
        }
        for question, answers in asked
        if answers
    ]


def _something(bound: Mapping[str, Any]) -> str:
    """The meaning of a lower bound: only one above 0 shows something."""
    return "that something is shared" if verdict(bound) == "above" else "nothing"


def _raw_above_projected(lost: Mapping[str, Any]) -> str:
    told = verdict(lost)
    if told == UNTOLD:
        return f"raw can't be told from projected, {interval_text(lost)}"
    return f"raw is {told} projected by {apart(lost)}"


def _differences(shown: Mapping[str, Any], first: str, second: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, row)
        for name, part in quality(shown).items()
        for row in part["differences"]
        if (row["first"], row["second"]) == (first, second)
    ]


def apart(difference: Mapping[str, Any]) -> str:
    """The difference with its interval, without the sign, which "above" and "below" already tell."""
    low, high = sorted(abs(difference[key]) for key in ("low", "high"))
    return interval_text({"value": abs(difference["value"]), "low": low, "high": high})


def difference_of(
    shown: Mapping[str, Any], first: str, second: str, names: Sequence[str]
) -> tuple[str, dict[str, Any] | None]:
    """The difference of two settings in the first of the named figures that has one, with the figure's name."""
    known = dict(_differences(shown, first, second))
    return next(((name, known[name]) for name in names if name in known), ("", None))
