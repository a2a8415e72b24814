"""The command `llava-soundclip report`. Imports what is heavy when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from llava_soundclip.running import command_line


def report(
    runs: Annotated[Path, typer.Argument(help="Folder of what `llava-soundclip eval ... --json` wrote.")],
    out: Annotated[Path, typer.Option(help="The page, one HTML file.")],
    figures: Annotated[
        Path | None, typer.Option("--json", help="Write every figure of the page to this file, too.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Clips to show of each captions file.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the draw of those clips.")] = 0,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Make one self-contained page of runs: figures with intervals, plots, examples, provenance."""
    from llava_soundclip.evaluation.report.page import write_report

    try:
        found = write_report(runs, out, examples=examples, seed=seed, title=title)
        if figures is not None:
            figures.write_text(
                json.dumps({**found, "command": command_line()}, indent=2) + "\n", encoding="utf-8"
            )
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{out}: {out.stat().st_size / 1024:.0f} KiB")
