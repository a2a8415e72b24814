"""Checks of the numbers and tensors that alignments are made of."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

_MAX_DIM = 2**20  # far above any encoder; products of two such widths still fit 64 bits


def check_vectors(z: Tensor) -> None:
    """Refuse what isn't (B, d_a) of floats."""
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"Expected vectors (B, d_a) of floats, got {tuple(z.shape)} of {z.dtype}.")


def as_number(value: Any) -> float:
    """NaN, which no range holds, if it is none. A bool is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def checked_dim(name: str, value: Any) -> int:
    """A width, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_DIM:
        raise ValueError(f"{name} must be an int from 1 to {_MAX_DIM}, got {value!r}.")
    return value


def checked_alpha(alpha: Any, *, name: str = "alpha") -> float:
    """A number in [0, 1], if it is one."""
    number = as_number(alpha)
    if not 0 <= number <= 1:
        strings = "'raw', 'projected' or " if name == "alignment" else ""
        raise ValueError(f"{name} must be {strings}a number in [0, 1] (1 is raw), got {alpha!r}.")
    return number
