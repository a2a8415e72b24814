"""Where the right answer stands among all: exact, both ways in one pass, in memory that grows with N.

Shapes: f_a (N, D) vectors of sounds in the tower's space and c (N, D) the CLS tokens of their pictures, row by row
a pair.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 2048  # rows and columns of a block of cosines
LEVEL = 1e-6  # cosines that are no further apart are level: what float32 rounds away


def ranks(
    f_a: Tensor, c: Tensor, groups: Tensor | None = None, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The place of each query's right answer among all, by cosine, 1 is best.

    Answers that are level with the right one share their places: each has the mean of them, whichever way is asked.
    Where several answers are right, the place is that of the best of them among the wrong ones.

    Args:
        f_a: (N, D) of any float dtype; computed in float32, block by block, so that it may be mapped from a file.
        c: (N, D); row i is a right one for row i.
        groups: (N,) integers: all rows of one group are right answers for each other. None: row i for row i alone.
        block: rows and columns of the cosines that are in memory at a time.

    Returns:
        Pictures found by sounds and sounds found by pictures, (N,) float32 each, halves where answers are level.

    Raises:
        ValueError: if the two aren't matrices of one shape, or `groups` doesn't fit them.
    """
    if f_a.ndim != 2 or f_a.shape != c.shape:
        raise ValueError(f"expected two (n, D), got {tuple(f_a.shape)} and {tuple(c.shape)}")
    if groups is not None and (groups.shape != f_a.shape[:1] or groups.is_floating_point()):
        raise ValueError(
            f"groups must be ({len(f_a)},) integers, got {tuple(groups.shape)} of {groups.dtype}"
        )
    sides = [_Side(len(f_a)), _Side(len(c))]
    if groups is None:
        _meet_pairs(f_a, c, sides, block)
    else:
        _meet_groups(f_a, c, groups, sides, block)
    for rows in _slices(len(f_a), block):
        x = _unit(f_a[rows])
        for columns in _slices(len(c), block):
            cosines = x @ _unit(c[columns]).T
            sides[0].count(cosines, rows)
            sides[1].count(cosines.T, columns)
    a2v, v2a = (side.ranks() for side in sides)
    return a2v, v2a


class _Side:
    """One way of asking: what is known of each query's right answers, and how many answers are before them.

    Attributes:
        right: (N,) cosine of the best right answer.
        own: (N,) right answers that are level with it, itself too.
        ahead: (N,) answers that are nearer.
        level: (N,) answers that are as near.
    """

    def __init__(self, n: int) -> None:
        self.right = torch.full((n,), -torch.inf)
        self.own = torch.zeros(n, dtype=torch.long)
        self.ahead = torch.zeros(n, dtype=torch.long)
        self.level = torch.zeros(n, dtype=torch.long)

    def count(self, cosines: Tensor, queries: slice) -> None:
        """Take in a block, (queries, answers)."""
        right = self.right[queries, None]
        ahead = (cosines > right + LEVEL).sum(1)
        self.ahead[queries] += ahead
        self.level[queries] += (cosines >= right - LEVEL).sum(1) - ahead

    def ranks(self) -> Tensor:
        return (1 + self.ahead + (self.level - self.own).clamp(min=0) / 2).float()


def _meet_pairs(f_a: Tensor, c: Tensor, sides: list[_Side], block: int) -> None:
    """Row i is the right answer for row i."""
    for rows in _slices(len(f_a), block):
        right = (_unit(f_a[rows]) * _unit(c[rows])).sum(1)
        for side in sides:
            side.right[rows], side.own[rows] = right, 1


def _meet_groups(f_a: Tensor, c: Tensor, groups: Tensor, sides: list[_Side], block: int) -> None:
    """All rows of a group are right answers for each other."""
    order = groups.argsort(stable=True)
    counts = groups[order].unique_consecutive(return_counts=True)[1]
    for members in order.split(counts.tolist()):
        for is_counting in (False, True):  # first the best, then what is level with it
            for rows in members.split(block):
                for columns in members.split(block):
                    cosines = _unit(f_a[rows]) @ _unit(c[columns]).T
                    for side, block_of, queries in (
                        (sides[0], cosines, rows),
                        (sides[1], cosines.T, columns),
                    ):
                        if is_counting:
                            side.own[queries] += (block_of >= side.right[queries, None] - LEVEL).sum(1)
                        else:
                            side.right[queries] = side.right[queries].maximum(block_of.amax(1))


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows.float(), dim=1)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
