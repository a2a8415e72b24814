"""The command `llava-soundclip eval retrieval`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.evaluation.output import interval_text, write_figures


def retrieval(
    features: opt.Features,
    projector: opt.MeasuredProjector = None,
    rows: opt.MeasuredRows = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Rank all clips at once instead of five draws of 100 from up to 500 clips."
        ),
    ] = False,
    right: Annotated[
        str,
        typer.Option(
            help="Right answer: pair for the clip's own picture, source for any picture of its video."
        ),
    ] = "pair",
    alphas: Annotated[
        str | None,
        typer.Option(help="Mixes of raw (1) and projected (0) to measure as well, such as 0.25,0.5,0.75."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the draws and the intervals.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Ray cluster to rank on, with --full: "auto" for the cluster of this machine, HOST:PORT, '
            'or "local" to start Ray here.',
        ),
    ] = None,
    out: opt.Json = None,
) -> None:
    """Measure retrieval from sounds to pictures and back (Appendix E): mean rank and recall, raw and projected."""
    from llava_soundclip.alignment.projector import Projector
    from llava_soundclip.evaluation.retrieval import evaluate_retrieval

    if ray is not None and not full:
        raise typer.BadParameter("--ray needs --full: draws of 100 clips need no cluster")
    opt.prepare_file(out, "--json")
    mixes = opt.numbers(alphas or "", float, "--alphas")
    with opt.exit_codes():
        found = evaluate_retrieval(
            features,
            None if projector is None else Projector.from_pretrained(projector),
            rows=rows,
            trained_in=projector,
            full=full,
            right=right,
            alphas=mixes,
            seed=seed,
            ray=ray,
        )
        opt.say(retrieval_text(found))
        write_figures(out, found)


def retrieval_text(found: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    from llava_soundclip.evaluation.retrieval import FIGURES

    lines = [f"{found['clips']} clips ({found['rows']}), {found['protocol']}", ""]
    lines.append(f"{'':16}" + "".join(f"{name:>26}" for name in FIGURES))
    for name, sides in found["figures"].items():
        for side, figures in sides.items():
            cells = "".join(f"{interval_text(figures[figure]):>26}" for figure in FIGURES)
            lines.append(f"{name + ' ' + side:16}{cells}")
    lines.append(f"{'chance':16}" + "".join(f"{found['chance'][name]:>26.3g}" for name in FIGURES))
    return "\n".join(lines)
