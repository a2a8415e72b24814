"""The command line. Only this folder imports Typer. Heavy imports are inside the commands."""

from llava_soundclip.cli.program import app, main

__all__ = ["app", "main"]
