"""The command line. Only this folder imports Typer; what is heavy is imported inside the commands."""

from llava_soundclip.cli.program import app, main

__all__ = ["app", "main"]
