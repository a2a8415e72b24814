"""Old name of `checkpoints.py`, as in docs/adding-an-encoder.md before version 0.1. Its use is deprecated."""

import warnings
from typing import Any

from llava_soundclip import fingerprints
from llava_soundclip.encoders import checkpoints


def __getattr__(name: str) -> Any:
    home = fingerprints if name == "fingerprint" else checkpoints
    value = getattr(home, name)
    warnings.warn(
        f"{__name__}.{name} has moved to {home.__name__}.{name}; the old name will be removed in 0.2",
        DeprecationWarning,
        stacklevel=2,
    )
    return value
