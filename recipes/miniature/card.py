"""Write the figures of `figures/measured.json` into the card and docs/tokens.md, as tables between marks.

The tables of docs/tradeoff.md, from `figures/tradeoff.json`, are made here as well.

python recipes/miniature/card.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from settings import DOCS, MEASURED, PLACES, TOKENS, WEIGHTS

from llava_soundclip.demo import K

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
SLOTS = {
    "projected": "the sound, projected",
    "alpha": "half raw, half projected (alpha 0.5)",
    "raw": "the sound, raw",
    "raw, matched": 'raw, scaled to CLS\'s norm (`norm="match"`)',
    "noise": "noise of the projected sound's norm",
    "zero vector": "a zero vector",
    "another recording": "another recording: the scene's own kind named",
}


def cell(figure: dict[str, Any] | None) -> str:
    """A share with its interval: "0.97 (0.89 to 0.99)"."""
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{figure['share']:.2f} ({low:.2f} to {high:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def silence(figures: dict[str, Any]) -> str:
    """Table of the captions without a sound."""
    rows, n = [], 0
    for recipe in TOKENS:
        if part := figures.get(f"{recipe}: silence"):
            n = part["1 named"]["n"]
            for things in (1, 2):
                cells = [cell(part[f"{things} {what}"]) for what in ("named", "talks of hearing", "repeats")]
                rows.append([recipe, str(things), *cells])
    head = ("mm_projector", "things", "all named", "mentions hearing", "repeats a thing in a clause")
    return f"### Without a sound (n = {n} each)\n\n" + table(head, rows) if rows else ""


def scenes(figures: dict[str, Any], recipe: str) -> str:
    """Tables of the captions with a sound, for one mm_projector."""
    part = figures.get(f"{recipe}: scenes")
    if not part:
        return ""
    budgets, slots, n, tokens_k = [], [], 0, ""
    for key in part:
        tokens, k, choice, rest = key.split(", ", 3)
        what, place = rest.removesuffix(", visible").removesuffix(", not visible"), rest.rpartition(", ")[2]
        if place != "visible":
            continue
        both = [part[f"{tokens}, {k}, {choice}, {what}, {place}"] for place in PLACES]
        n = both[0]["heard"]["n"]
        cells = [cell(figure[named]) for figure in both for named in ("heard", "seen")]
        if what == "projected":
            budgets.append([tokens, k, choice if k not in ("0", "36") else "", *cells])
        else:
            tokens_k = f'`tokens="{tokens}"`, k = {k}'
            slots.append([SLOTS[what], *cells])
            if what == "another recording":
                played = [
                    cell(part[f"{tokens}, {k}, {choice}, {what}, {place}"]["played"]) for place in PLACES
                ]
                slots.append(["the same: the played kind named", played[0], "", played[1], ""])
            if what == "alpha":
                own = [part[f"{tokens}, {k}, {choice}, projected, {place}"] for place in PLACES]
                slots.insert(
                    0, [SLOTS["projected"], *[cell(f[named]) for f in own for named in ("heard", "seen")]]
                )
    columns = ("visible: sounding named", "silent named", "not visible: sounding named", "silent named")
    return (
        f"### With a sound, `{recipe}` (n = {n} each)\n\n"
        + table(("tokens", "k of 36", "patches", *columns), budgets)
        + f"\nWhat fills the CLS slot, with {tokens_k}:\n\n"
        + table(("CLS slot", *columns), slots)
    )


def agreement(figures: dict[str, Any], place: str) -> str:
    """Table of `tokens="drop"` against `"zero"`: their agreement, and the figures of each."""
    rows, n = [], 0
    for recipe in TOKENS:
        for key, drop in figures.get(f"{recipe}: scenes", {}).items():
            if "same kinds as zero" not in drop or not key.endswith(f", {place}"):
                continue
            _, k, choice, _ = key.split(", ", 3)
            zero = figures[f"{recipe}: scenes"][key.replace("drop", "zero", 1)]
            same = [cell(drop[what]) for what in ("same caption as zero", "same kinds as zero")]
            quality = [cell(part[what]) for what in ("heard", "seen") for part in (zero, drop)]
            rows.append([recipe, k, choice if k != "0" else "", *same, *quality])
            n = drop["heard"]["n"]
    head = ("mm_projector", "k of 36", "patches", "same caption", "same things named")
    head += ("sounding named: zero", "drop", "silent named: zero", "drop")
    return f"n = {n} each.\n\n" + table(head, rows) if rows else ""


def unseen(figures: dict[str, Any]) -> str:
    """Tables of the held-out recordings."""
    parts = {recipe: figures[f"{recipe}: unseen"] for recipe in TOKENS if f"{recipe}: unseen" in figures}
    if not parts:
        return ""
    origins = {"held out": "held out, from the world", "far": "far, from ESC-50 and ImageBind"}
    rows = []
    for recipe, part in parts.items():
        for origin, called in origins.items():
            for place in PLACES:
                if figure := part.get(f"{origin}, {place}"):
                    most = figure["most"]
                    counted = f"{round(most['share'] * most['n'])} of {most['n']}"
                    rows.append(
                        [recipe, called, place, cell(figure["heard"]), str(figure["heard"]["n"]), counted]
                    )
    head = ("mm_projector", "recordings", "their thing", "named", "n", "recordings named with most pictures")
    each, recipes = [], list(parts)
    for key in parts[recipes[0]]:
        if key.startswith("recording "):
            found = [parts[recipe][key] for recipe in recipes]
            shares = [f"{round(figure['share'] * figure['n'])} of {figure['n']}" for figure in found]
            each.append([key.removeprefix("recording "), found[0]["kind"], *shares])
    return (
        "### Recordings never trained on\n\n"
        + table(head, rows)
        + "\nEach recording, with pictures of something else:\n\n"
        + table(("recording", "kind", *recipes), each)
    )


def retrieval(figures: dict[str, Any]) -> str:
    """Table of retrieval."""
    part = figures.get("retrieval")
    if not part:
        return ""
    rows = []
    for key, figure in part.items():
        tops = [cell(figure[name]) for name in ("Top-1", "Top-3", "Top-10", "same kind")]
        rows.append([*key.split(", "), f"{figure['mean rank']:.1f}", *tops])
    n = next(iter(part.values()))["n"]
    head = (
        "alignment",
        "direction",
        "mean rank",
        "Top-1",
        "Top-3",
        "Top-10",
        "same kind first",
    )
    return f"### Retrieval (Appendix E), {n} pairs\n\n" + table(head, rows)


def others(figures: dict[str, Any]) -> str:
    """Remaining figures: drawn kinds, repetition and time."""
    lines = []
    if part := figures.get("drawn"):
        lines.append(
            f"- Drawn kinds, each sound with each drawing (`prepared`): sound named {cell(part['heard'])}, "
            f"n = {part['heard']['n']}; another thing that is seen {cell(part['seen'])}, n = {part['seen']['n']}."
        )
    for recipe, tokens in TOKENS.items():
        if part := figures.get(f"{recipe}: scenes"):
            both = [part[f"{tokens}, {K}, similar, projected, {place}"]["repeats"] for place in PLACES]
            lines.append(
                f"- A thing repeated in a clause, with a sound and `{tokens}`, k = {K} (`{recipe}`): "
                f"{cell(both[0])} with the thing visible, {cell(both[1])} otherwise, n = {both[0]['n']} each."
            )
    if part := figures.get("time"):
        one = part["caption"]
        lines.append(
            f"- Time on two cores: {part['loading']:.1f} s to load from the cache, {one['median']:.2f} s per caption "
            f"(median of {one['n']}; the slowest took {one['most']:.2f} s)."
        )
    return "### Other figures\n\n" + "\n".join(lines) + "\n" if lines else ""


SHOWN = (
    "raw",
    "raw, noise",
    "zero",
    *(f"projected{control}" for control in ("", ", noise", ", another", ", random")),
)
APART = (("raw", "projected"), ("raw", "raw, noise"), ("projected", "projected, noise"))
METRICS = (
    *("sounding named", "unseen named", "played named", "silent named", "absent named"),
    *("BERTScore", "CLIPScore", "BLEU"),
)
RANKS = ("mean rank", "R@1", "R@10")


def interval(figure: Sequence[float] | None) -> str:
    """A figure with its interval: "0.97 (0.89 to 0.99)"."""
    return "" if figure is None else "{:.2f} ({:.2f} to {:.2f})".format(*figure)


def tradeoff(figures: dict[str, Any]) -> str:
    """Tables of docs/tradeoff.md: captions, differences and retrieval of each mm_projector and set of clips."""
    parts = []
    for name, part in figures.items():
        captions, differences, retrieval = part["captions"], part["differences"], part["retrieval"]
        rows = [
            # A zero vector is the same raw or projected.
            [
                setting,
                *(interval(captions["raw, zero" if setting == "zero" else setting].get(m)) for m in METRICS),
            ]
            for setting in SHOWN
        ]
        for first, second in APART:
            found = differences[f"{first} - {second}"]
            rows.append(
                [f"{first} - {second.removeprefix(f'{first}, ')}", *(interval(found.get(m)) for m in METRICS)]
            )
        ranks = [
            [alignment, *(interval(sides[side][rank]) for side in ("A2V", "V2A") for rank in RANKS)]
            for alignment, sides in retrieval["figures"].items()
        ]
        chance = [f"{retrieval['chance'][rank]:.2f}" for rank in RANKS]
        head = ("A2V mean rank", "R@1", "R@10", "V2A mean rank", "R@1", "R@10")
        parts.append(
            f"### {name}: {part['clips']} clips of {part['recordings']} recordings\n\n"
            + table(("setting", *METRICS), rows)
            + f"\nRetrieval, {retrieval['protocol']}, {retrieval['clips']} clips:\n\n"
            + table(("alignment", *head), [*ranks, ["chance", *chance, *chance]])
        )
    return "\n".join(parts)


def render(figures: dict[str, Any]) -> str:
    """All tables."""
    parts = [
        silence(figures),
        *(scenes(figures, recipe) for recipe in TOKENS),
        unseen(figures),
        retrieval(figures),
        others(figures),
    ]
    return "\n".join(part for part in parts if part)


def write_between_marks(page: Path, tables: str) -> None:
    """Put tables between a page's marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{tables}{END}{after}")


def write_card(card: Path, figures: dict[str, Any]) -> None:
    """Put all tables between the card's marks."""
    write_between_marks(card, render(figures))


def write_tokens(page: Path, figures: dict[str, Any]) -> None:
    """Put the comparison of `tokens="zero"` and `"drop"` between the marks of docs/tokens.md."""
    parts = [f"### The sounding thing is {place}\n\n{agreement(figures, place)}" for place in PLACES]
    write_between_marks(page, "\n".join(parts))


def main() -> None:
    """Write both pages."""
    figures = json.loads(MEASURED.read_text())
    write_card(WEIGHTS / "README.md", figures)
    write_tokens(DOCS / "tokens.md", figures)


if __name__ == "__main__":
    main()
