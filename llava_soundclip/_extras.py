"""Optional packages: asked for where they are used, missed with the line that installs them."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        ImportError: with the pip line, if the package isn't installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{module.partition('.')[0]} is not installed: pip install 'llava-soundclip[{extra}]'"
        ) from error
