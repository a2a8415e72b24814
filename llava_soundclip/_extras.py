"""Optional packages, imported where they are used. The error for a missing one has the line that installs it."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra installs it.

    Raises:
        ImportError: if the package isn't installed; the message has the pip line.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: pip install 'llava-soundclip[{extra}]'"
        ) from error
