"""Shared by the estimators: checked vectors and groups, and draws of rows."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # on squared weights, per clip, with standardised columns

Vectors = Tensor | np.ndarray
Groups = Sequence[Hashable] | np.ndarray | Tensor


def matrix(x: Vectors, name: str) -> Tensor:
    """Vectors as (n, d) float64 on the CPU.

    Raises:
        ValueError: if they aren't a non-empty matrix of finite floats; the message has `name`.
    """
    rows = torch.as_tensor(x).detach().cpu()
    if rows.ndim != 2 or not rows.is_floating_point() or not rows.numel() or not rows.isfinite().all():
        raise ValueError(f"{name} must be (n, d) finite floats, got {tuple(rows.shape)} of {rows.dtype}")
    return rows.double()


def around_mean(x: Tensor, name: str) -> Tensor:
    """Rows of (n, d), centred and scaled to a root mean square of 1.

    Raises:
        ValueError: if they are all alike; the message has `name`.
    """
    centred = x - x.mean(0)
    scale = centred.square().mean().sqrt()
    if not scale > 1e-12 * x.abs().max():
        raise ValueError(f"the rows of {name} are all alike")
    return centred / scale


def numbered(groups: Groups | None, n: int) -> np.ndarray:
    """Groups by number, (n,) integers; without groups each row is its own group.

    Raises:
        ValueError: if there aren't n groups.
    """
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups must be ({n},), got {len(groups)}")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def drawn_in_turn(numbers: np.ndarray, limit: int, seed: int) -> Tensor:
    """Up to `limit` rows in ascending order, from all groups in turn.

    Args:
        numbers: (n,) integers, the group of each row.
        limit: maximum number of rows.
        seed: random seed for the order of a group's rows.
    """
    order = np.random.default_rng(seed).permutation(len(numbers))
    by_group = order[np.argsort(numbers[order], kind="stable")]
    _, starts, counts = np.unique(numbers[by_group], return_index=True, return_counts=True)
    turn = np.empty(len(numbers), dtype=int)
    turn[by_group] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return torch.from_numpy(np.sort(order[np.argsort(turn[order], kind="stable")][:limit]))
