"""Plots as SVG inside the page, with real text and the page's colours. The same figures give the same bytes."""

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llava_soundclip._extras import require

WIDTH = 3.7  # inches; narrow enough for a phone
LABEL = 46  # maximum number of characters of a name

# Placeholders for matplotlib; the page's style sheet sets the colours for light and dark.
_INK, _LINE, _CONTROL = "#010101", "#010102", "#010103"
_SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115")
_STYLED = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    _CONTROL: "var(--control)",
    **{colour: f"var(--series{number})" for number, colour in enumerate(_SERIES, 1)},
}
_MARKERS = "osD^vPX"  # in step with the colours only after 35
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))


def dots(title: str, rows: Sequence[tuple[str, Mapping[str, Any], bool]], *, towards: str = "") -> str:
    """Plot a dot with its interval for each setting.

    Args:
        title: title of the plot, for screen readers.
        rows: (name, figure, whether it is a control); controls are hollow and grey.
        towards: the better end, in words.
    """
    with _axes(title, 0.62 + 0.33 * len(rows)) as (axes, drawn):
        for place, (name, figure, is_control) in enumerate(rows):
            colour = _CONTROL if is_control else _SERIES[0]
            axes.axhline(place, color=_LINE, linewidth=0.5, zorder=0)
            axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(
                figure["value"], place, "o", color=colour, markerfacecolor="none" if is_control else colour
            )
            axes.text(
                0, place - 0.26, _short(name), transform=axes.get_yaxis_transform(), size=8, va="bottom"
            )
        axes.set_ylim(len(rows) - 0.5, -0.85)
        axes.set_yticks([])
        axes.set_xlabel(towards)
    return drawn[0]


def curves(
    title: str, lines: Mapping[str, Sequence[Mapping[str, Any]]], *, over: str, control: str | None = None
) -> str:
    """Plot a figure over alpha or k, with one line per control or side.

    Args:
        title: title of the plot, for screen readers.
        lines: steps by name, each with "at", "value", "low" and "high".
        over: name of the quantity "at".
        control: name of the one line that isn't a control; None if no line is a control.
    """
    with _axes(title, 2.7) as (axes, drawn):
        at = sorted({step["at"] for steps in lines.values() for step in steps})
        nudge = (at[-1] - at[0]) / 60 if len(at) > 1 else 0.0  # so that intervals don't cover each other
        for number, (name, steps) in enumerate(lines.items()):
            is_control = control is not None and name != control
            axes.errorbar(
                [step["at"] + nudge * number for step in steps],
                [step["value"] for step in steps],
                _errors(steps),
                label=_short(f"{name} (control)" if is_control else name),
                color=_CONTROL if is_control else _SERIES[number % len(_SERIES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markerfacecolor="none" if is_control else None,
                linestyle=_DASHES[number % len(_DASHES)],
                linewidth=1.2,
                markersize=5,
            )
        axes.set_xticks(at, [f"{value:g}" for value in at])
        axes.set_xlabel(over)
        _legend(axes, len(lines))
    return drawn[0]


def front(
    title: str, points: Sequence[Mapping[str, Any]], on_front: Sequence[str], *, x: str, y: str, lower: bool
) -> str:
    """Plot settings by retrieval and quality, with intervals, and the Pareto front as a line.

    Args:
        title: title of the plot, for screen readers.
        points: points, each with "setting", "retrieval" and "quality".
        on_front: settings on the front, in its order.
        x: name of the retrieval figure.
        y: name of the quality figure.
        lower: whether a lower quality is better; the axis is then inverted, so that up is better.
    """
    with _axes(title, 3.2 + 0.17 * len(points)) as (axes, drawn):
        places = {point["setting"]: point for point in points}
        axes.plot(
            [places[name]["retrieval"]["value"] for name in on_front],
            [places[name]["quality"]["value"] for name in on_front],
            color=_LINE,
            linewidth=3,
            zorder=0,
        )
        for number, point in enumerate(points):
            best = point["setting"] in on_front
            axes.errorbar(
                point["retrieval"]["value"],
                point["quality"]["value"],
                _errors([point["quality"]]),
                _errors([point["retrieval"]]),
                label=_short(point["setting"] + (" (front)" if best else "")),
                color=_SERIES[number % len(_SERIES)] if best else _CONTROL,
                marker=_MARKERS[number % len(_MARKERS)],
                markerfacecolor=None if best else "none",
                linestyle="none",
                linewidth=1,
            )
        if lower:
            axes.invert_yaxis()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _legend(axes, len(points))
    return drawn[0]


def histogram(title: str, bins: Mapping[str, Sequence[Mapping[str, float]]], *, chance: bool) -> str:
    """Plot the number of queries by the rank of their right answer.

    Args:
        title: title of the plot, for screen readers.
        bins: bins by alignment, each with "from", "to" and "queries".
        chance: whether to draw the counts for answers in random order, which are flat with one right answer.
    """
    with _axes(title, 2.7) as (axes, drawn):
        for number, (name, row) in enumerate(bins.items()):
            edges = [row[0]["from"] - 0.5, *(each["to"] + 0.5 for each in row)]
            axes.stairs(
                [each["queries"] for each in row],
                edges,
                label=_short(name),
                color=_SERIES[number % len(_SERIES)],
                linestyle=_DASHES[number % len(_DASHES)],
                linewidth=1.5,
            )
        if chance:
            share = sum(each["queries"] for each in row) / row[-1]["to"]
            axes.stairs(
                [share * (each["to"] - each["from"] + 1) for each in row],
                edges,
                label="chance",
                color=_CONTROL,
                linewidth=1,
            )
        axes.set_ylim(0, None)
        axes.set_xlabel("rank of the right answer, 1 is best")
        axes.set_ylabel("queries")
        _legend(axes, len(bins) + chance)
    return drawn[0]


def _errors(figures: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    # A percentile interval may not contain its value.
    return [
        [max(0.0, figure["value"] - figure["low"]) for figure in figures],
        [max(0.0, figure["high"] - figure["value"]) for figure in figures],
    ]


def _legend(axes: Any, entries: int) -> None:
    if entries > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2 if entries < 4 else 1,
            frameon=False,
            fontsize=8,
            borderaxespad=0.2,
            labelcolor=_INK,
        )


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"


@contextmanager
def _axes(title: str, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that receives the SVG on exit."""
    matplotlib = require("matplotlib", extra="evaluation")
    style = require("matplotlib.style", extra="evaluation")
    figures = require("matplotlib.figure", extra="evaluation")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",  # random ids otherwise
        "text.parse_math": False,  # names may have a $
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "legend.fancybox": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
        "axes.edgecolor": _LINE,
        "axes.grid": True,
        "axes.grid.axis": "both",
        "grid.color": _LINE,
        "grid.linewidth": 0.5,
    }
    drawn: list[str] = []
    with style.context("default"), matplotlib.rc_context(settings), warnings.catch_warnings():
        # The font only measures text; the browser draws letters that it lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure.subplots(), drawn
        content = io.StringIO()
        figure.savefig(
            content,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    drawn.append(_inline(content.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Reduce an SVG file to the part that HTML needs, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # comments that repeat each text
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # the page has its own
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every plot
    svg = re.sub(
        r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg
    )  # 0.01 pt is precise enough
    view = re.search(r'viewBox="[\d. ]+"', svg)
    assert view is not None
    svg = f'<svg {view[0]} role="img" aria-label="{html.escape(title)}">' + svg[svg.index(">") + 1 :]
    for colour, styled in _STYLED.items():
        svg = svg.replace(colour, styled)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
