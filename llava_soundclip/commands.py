"""What the commands share."""

from collections.abc import Iterable

import typer

ENCODER_OPTION_HELP = "An option of the encoder, such as window=clip; may be given several times."


def default_device() -> str:
    """The accelerator if there is one, else "cpu"."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def encoder_options(pairs: Iterable[str]) -> dict[str, str | int]:
    """The options of an encoder out of NAME=VALUE; whole numbers become ones.

    Raises:
        BadParameter: for something else.
    """
    options: dict[str, str | int] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--encoder-option is NAME=VALUE, not {pair!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options
