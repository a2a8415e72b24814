"""The command `llava-soundclip report`."""

from pathlib import Path
from typing import Annotated

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.evaluation.output import write_figures


def report(
    runs: Annotated[Path, typer.Argument(help="Folder of files from `llava-soundclip eval ... --json`.")],
    out: Annotated[Path, typer.Option(help="HTML file for the page.")],
    figures: Annotated[
        Path | None, typer.Option("--json", help="Also write every figure of the page to this file.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Number of clips to show from each captions file.")
    ] = 6,
    seed: Annotated[int, typer.Option(help="Random seed for the choice of those clips.")] = 0,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """Make a self-contained page of runs: figures with intervals, plots, examples and provenance."""
    from llava_soundclip.evaluation.report.page import write_report

    opt.prepare_file(out, "--out")
    opt.prepare_file(figures, "--json")
    with opt.exit_codes():
        write_figures(figures, write_report(runs, out, examples=examples, seed=seed, title=title))
    opt.say(f"{out}: {out.stat().st_size / 1024:.0f} KiB")
