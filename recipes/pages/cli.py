"""Write docs/cli.md from the commands' own help.

python recipes/pages/cli.py
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from llava_soundclip.cli import app
from llava_soundclip.running import PROGRAM

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
HEAD = f"""# The command line

`{PROGRAM} COMMAND --help` shows the same in a terminal. `make docs-cli` makes this page from it.

| exit code | meaning |
| --- | --- |
| 0 | all went well |
| 1 | some clips failed and are listed at the end, or no clips were found |
| 2 | a mistake in the command or in its input |
| 130 | Ctrl-C |
"""
METAVARS = {Path: "PATH", int: "N", float: "NUMBER"}


def commands(command: Any, name: str = PROGRAM) -> Iterator[tuple[str, Any]]:
    """All commands with their full names, in the program's order."""
    for short, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from commands(inner, f"{name} {short}")
        else:
            yield f"{name} {short}", inner


def page() -> str:
    """The page's text."""
    program = typer.main.get_command(app)
    found = list(commands(program))
    lines = [HEAD, "| command | task |", "| --- | --- |"]
    for name, command in found:
        lines.append(
            f"| [`{name}`](#{name.replace(' ', '-')}) | {_paragraphs(command)[0].split('. ')[0].rstrip('.')} |"
        )
    lines += [f"| `{PROGRAM} --version` | Show the version |", ""]
    for name, command in found:
        lines += _section(name, command)
    return "\n".join(lines)


def _section(name: str, command: Any) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [
        param for param in command.params if param.param_type_name == "option" and param.name != "help"
    ]
    types = get_type_hints(command.callback)
    metavars = {
        param.name: "" if param.is_flag else param.metavar or _metavar(types[param.name]) for param in options
    }
    usage = [name, *(_argument(param) for param in arguments)]
    usage += [f"{param.opts[0]} {metavars[param.name]}" for param in options if param.required]
    usage += ["[OPTIONS]"] if any(not param.required for param in options) else []
    lines = [f"## {name}", "", "```text", " ".join(usage), "```", ""]
    for paragraph in _paragraphs(command):
        lines += [paragraph, ""]
    if arguments or options:
        lines += ["| argument or option | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{_argument(param)}` | required | {_cell(param.help)} |" for param in arguments]
        for param in options:
            typed = f"{param.opts[0]} {metavars[param.name]}".strip()
            lines.append(f"| `{typed}` | {_default(param)} | {_cell(param.help)} |")
        lines.append("")
    return lines


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]


def _argument(param: Any) -> str:
    return param.name.upper() + ("..." if param.nargs == -1 else "")


def _metavar(annotation: Any) -> str:
    kinds = [kind for kind in (annotation, *get_args(annotation)) if kind in METAVARS]
    return METAVARS[kinds[0]] if kinds else "TEXT"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if param.is_flag or param.default in (None, (), []):
        return ""
    return f"`{param.default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
