"""The command `llava-soundclip eval information`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.evaluation.information.limits import LIMITS
from llava_soundclip.evaluation.output import interval_text, write_figures

WIDTH = 100  # characters per line of prose


def information(
    features: opt.Features,
    projector: opt.MeasuredProjector = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help='JSON Lines of labels that probes learn: {"id": ..., "kind": "dog", "speech_band": -3.5}, or the '
            "references of `eval captions`."
        ),
    ] = None,
    rows: opt.MeasuredRows = None,
    apart: Annotated[
        str,
        typer.Option(
            help="Unit that is held out together for probes: source, or clip if labels differ within a video."
        ),
    ] = "source",
    seed: Annotated[int, typer.Option(help="Random seed for draws and intervals.")] = 0,
    out: opt.Json = None,
) -> None:
    """Measure shared information, unique information and dimensions (F.1), raw and projected."""
    from llava_soundclip.alignment.projector import Projector
    from llava_soundclip.evaluation.information import evaluate_information

    opt.prepare_file(out, "--json")
    with opt.exit_codes():
        found = evaluate_information(
            features,
            None if projector is None else Projector.from_pretrained(projector),
            trained_in=projector,
            rows=rows,
            labels=labels,
            apart=apart,
            seed=seed,
        )
        opt.say(information_text(found))
        write_figures(out, found)


def information_text(found: Mapping[str, Any]) -> str:
    """The figures for a terminal, with the limits of each."""
    shared, dimension = found["shared"], found["dimension"]
    sides = [side for side in ("raw", "projected") if side in shared]
    above = ["projected - raw"] if "gain" in shared else []
    measured = (
        f"{found['clips']} clips ({found['rows']}), {found['drawn']} of them drawn, "
        f"from {found['sources']} sources; CKA and dimensions of {found['geometry_clips']}"
    )
    bounds = [
        [
            f"{critic} bound",
            *(interval_text(shared[side][critic]) for side in sides),
            *(interval_text(shared["gain"][critic]) for _ in above),
        ]
        for critic in ("cosine", "linear")
    ]
    geometry = [
        ["CKA", *(interval_text(shared[side]["cka"]) for side in sides)],
        ["p of independence", *(f"{shared[side]['p']:.3g}" for side in sides)],
    ]
    ceiling = shared["raw"]["linear"]["at_most"]
    lines = [
        measured,
        "",
        *_table([f"Shared, of {ceiling:.3g} nats at most", *sides, *above], bounds + geometry),
    ]
    lines += [*_prose(LIMITS["bounds"]), *_prose(LIMITS["geometry"]), ""]
    if found["unique"]:
        read = [side for side in ("raw", "projected", "picture") if side in dimension]
        lost = ["lost"] if "projected" in read else []
        lines += _table(
            ["Read by a probe", *read, "chance", *lost],
            [
                [
                    f"{_printable(label)}, {part['measure']}, {part['clips']} clips",
                    *(interval_text(part[side]) for side in read),
                    f"{part['chance']:.3g}",
                    *(interval_text(part["lost"]) for _ in lost),
                ]
                for label, part in found["unique"].items()
            ],
        )
        lines += [
            f"  {_printable(label)}: left out {part['left_out']['clips']} clips of "
            f"{part['left_out']['classes']} classes that are in one {found['apart']} alone"
            for label, part in found["unique"].items()
            if part["left_out"]["clips"]
        ]
        lines += [f"  not read: {_printable(sentence)}" for sentence in found["unmeasured"]]
        if found["unmatched"]:
            lines.append(f"  {found['unmatched']} clips with labels aren't in the folder")
        lines += [*_prose(LIMITS["unique"]), ""]
    lines += _table(
        ["Dimension", *dimension],
        [
            [name, *(interval_text(figures[key]) for figures in dimension.values())]
            for key, name in (("two_nn", "TwoNN"), ("participation_ratio", "participation ratio"))
        ],
    )
    return "\n".join([*lines, *_prose(LIMITS["dimension"])])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as columns, the first aligned left and the others right. Rows may be shorter than the head."""
    widths = [max(len(row[place]) for row in (head, *rows) if place < len(row)) for place in range(len(head))]
    return [
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False))
        for row in (head, *rows)
    ]


def _prose(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _printable(text: str) -> str:
    """A user's text on one line, without control characters."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
