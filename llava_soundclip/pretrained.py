"""Loading by transformers of what others made: code in a folder isn't run, and damage is said in a sentence."""

import os
from pathlib import Path
from typing import Any

from llava_soundclip.messages import without_advice


def load_pretrained(
    cls: Any, name: str | os.PathLike[str], *, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Call `from_pretrained` of a class.

    Args:
        cls: a class of transformers, such as `AutoProcessor`.
        name: Hub id or folder.
        trust_remote_code: whether code in the folder or repository may be run.
        **options: further options of `from_pretrained`.

    Raises:
        FileNotFoundError: for a path that doesn't exist; nothing is asked of the Hub.
        OSError: if the Hub can't be reached or lacks the files.
        ValueError: if the files are damaged, incomplete or odd, or need code of their own that may not be run.
        ImportError, MemoryError, RuntimeError: if a package, memory or a device is missing.
    """
    _check_path(name)
    try:
        return cls.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except RecursionError as error:
        raise _damaged(cls, name, error) from error
    except (ImportError, MemoryError, OSError, RuntimeError):
        raise
    except Exception as error:  # whichever of its libraries found the damage
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise ValueError(
                f"{name} needs Python code of its own, which isn't run. If you trust it: trust_remote_code=True, or "
                "--trust-remote-code"
            ) from error
        raise _damaged(cls, name, error) from error


def _damaged(cls: Any, name: str | os.PathLike[str], error: Exception) -> ValueError:
    reason = without_advice(str(error)).strip().partition("\n")[0]
    return ValueError(
        f"{name} can't be loaded ({cls.__name__}): its files are damaged, incomplete or odd "
        f"({type(error).__name__}: {reason})"
    )


def _check_path(name: str | os.PathLike[str]) -> None:
    """Refuse what looks like a path and isn't there: the Hub's words about it say little."""
    text = os.fspath(name)
    if os.path.isfile(text):
        raise ValueError(f"{text} is a file: give the folder that it is in")
    path_like = not isinstance(name, str) or text.startswith((".", "/", "~")) or text.endswith(("/", os.sep))
    if not text.strip() or ((path_like or text.count("/") > 1) and not Path(text).is_dir()):
        raise FileNotFoundError(f"there is no folder {text!r}; a Hub id has the form 'user/name'")
