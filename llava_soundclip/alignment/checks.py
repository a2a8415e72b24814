"""Checks of the numbers and tensors that alignments are built from."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

_MAX_DIM = 2**20  # far above any encoder, and a product of two such widths still fits 64 bits


def check_vectors(z: Tensor) -> None:
    """Raise a ValueError for anything but (B, d_a) floats."""
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"Expected vectors (B, d_a) of floats, got {tuple(z.shape)} of {z.dtype}.")


def as_number(value: Any) -> float:
    """The value as a float; NaN, which is in no range, if it isn't a number. A bool doesn't count as a number."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def checked_dim(name: str, value: Any) -> int:
    """Return the value if it is a valid width, else raise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_DIM:
        raise ValueError(f"{name} must be an int from 1 to {_MAX_DIM}, got {value!r}.")
    return value


def checked_alpha(alpha: Any, *, name: str = "alpha") -> float:
    """Return the value as a float if it is a number in [0, 1], else raise a ValueError."""
    number = as_number(alpha)
    if not 0 <= number <= 1:
        strings = "'raw', 'projected' or " if name == "alignment" else ""
        raise ValueError(f"{name} must be {strings}a number in [0, 1] (1 is raw), got {alpha!r}.")
    return number
