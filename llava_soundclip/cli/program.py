"""The program `llava-soundclip`: all its commands."""

import multiprocessing
from typing import Annotated

import typer

from llava_soundclip._version import __version__
from llava_soundclip.cli.caption import caption
from llava_soundclip.cli.embed import embed
from llava_soundclip.cli.encoders import encoders
from llava_soundclip.cli.eval_captions import captions
from llava_soundclip.cli.eval_information import information
from llava_soundclip.cli.eval_retrieval import retrieval
from llava_soundclip.cli.eval_tradeoff import tradeoff
from llava_soundclip.cli.features import features
from llava_soundclip.cli.info import info
from llava_soundclip.cli.report import report
from llava_soundclip.cli.train import train
from llava_soundclip.running import PROGRAM, stopped_by_signals

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
evaluations = typer.Typer(
    no_args_is_help=True,
    help="Measure retrieval, captions and information as in the paper, with confidence intervals.",
)
app.command()(caption)
app.command()(embed)
app.command()(encoders)
app.command()(info)
app.command()(features)
app.command()(train)
evaluations.command()(retrieval)
evaluations.command()(captions)
evaluations.command()(information)
evaluations.command()(tradeoff)
app.add_typer(evaluations, name="eval")
app.command()(report)


def main() -> None:
    """Entry point of `llava-soundclip` and `python -m llava_soundclip`."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return  # a worker process imports the script that called this
    with stopped_by_signals():
        app(prog_name=PROGRAM)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """SoundCLIP: let a LLaVA hear by putting sound in place of vision tokens."""
