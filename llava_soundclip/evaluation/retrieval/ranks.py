"""Ranks of the right answers among all: exact, in both directions in one pass, in memory that grows with N.

Shapes: f_a (N, D) are vectors of sounds in the tower's space, c (N, D) the CLS tokens of their pictures. Rows are
pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 2048  # rows and columns of a block of cosines
LEVEL = 1e-6  # cosines that differ by less are tied: float32 rounds as much
_MEETING = 256  # rows whose groups are searched at a time


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank of each query's best right answer, with its ties. Tied answers are in random order.

    Attributes:
        ahead: (...) int32, number of wrong answers ahead of it.
        tied: (...) int32, number of wrong answers tied with it.
        right: (...) int32, number of right answers tied with it, itself included.
    """

    ahead: Tensor
    tied: Tensor
    right: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected rank, float64; 1 is best. Ties can give fractions."""
        return 1 + self.ahead + self.tied.double() / (self.right + 1)

    def within(self, top: int) -> Tensor:
        """The probability that the rank is `top` or better, float64: 0 or 1 without ties."""
        missed = torch.ones(self.ahead.shape, dtype=torch.float64)
        for place in range(top):  # a miss: wrong answers on all top places that tied ones have
            left = (self.tied - place).clamp(min=0).double()
            share = left / (self.tied + self.right - place).clamp(min=1)
            missed *= torch.where(self.ahead + place < top, share, 1.0)
        return 1 - missed


def ranks(f_a: Tensor, c: Tensor, groups: Tensor | None = None, *, block: int = BLOCK) -> tuple[Ranks, Ranks]:
    """The rank of each query's right answer among all answers, by cosine; 1 is best.

    If several answers are right, the rank is that of the best one among the wrong ones. Answers tied with it are in
    random order, in both directions: w wrong and m right ones give it the mean rank 1 + w / (m + 1) among them.

    Args:
        f_a: (N, D) of any float dtype, and may be mapped from a file: it is read in blocks, as float32.
        c: (N, D) of any float dtype; row i is a right answer for row i.
        groups: (N,) integers: all rows of one group are right answers for each other. None: only row i for row i.
        block: rows and columns of the block of cosines held in memory.

    Returns:
        Ranks of pictures found by sounds and of sounds found by pictures, N each.

    Raises:
        ValueError: if the two aren't matrices of one shape, `groups` doesn't fit them, or a vector is NaN or infinite in
            float32.
    """
    places = Places(f_a, c, groups, block=block)
    for rows in places.strips():
        places.add(rows, *strip_counts(f_a, c, places.right, rows, block=block))
    return places.ranks()


class Places:
    """The right answers of each query and the number of answers ahead of them, in both directions.

    Attributes:
        right: (2, N) float32, cosine of the best right answer.
        own: (2, N) number of right answers tied with it, itself included.
        counts: (2, 2, N) per direction, the number of nearer answers, and of answers that are no further.
    """

    def __init__(self, f_a: Tensor, c: Tensor, groups: Tensor | None = None, *, block: int = BLOCK) -> None:
        """Find the right answers; all counts start at 0.

        Args:
            f_a, c, groups, block: as for `ranks`.

        Raises:
            ValueError: as for `ranks`.
        """
        if f_a.ndim != 2 or f_a.shape != c.shape:
            raise ValueError(f"expected two (n, D), got {tuple(f_a.shape)} and {tuple(c.shape)}")
        if groups is not None and (groups.shape != f_a.shape[:1] or groups.is_floating_point()):
            raise ValueError(
                f"groups must be ({len(f_a)},) integers, got {tuple(groups.shape)} of {groups.dtype}"
            )
        self.block = block
        check_finite(f_a, c, block=block)
        self.right = torch.full((2, len(f_a)), -torch.inf)
        self.own = torch.zeros(2, len(f_a), dtype=torch.int32)
        self.counts = torch.zeros(2, 2, len(f_a), dtype=torch.int32)
        if groups is None:
            self._meet_pairs(f_a, c)
        else:
            self._meet_groups(f_a, c, groups)

    def strips(self) -> Iterator[slice]:
        """Blocks of rows to count; see `add`."""
        return _slices(0, self.right.shape[1], self.block)

    def add(self, rows: slice, of_rows: Tensor, of_columns: Tensor) -> None:
        """Add the result of `strip_counts` for a block of rows."""
        self.counts[0, :, rows] += of_rows
        self.counts[1] += of_columns

    def ranks(self) -> tuple[Ranks, Ranks]:
        """The result of `ranks`, once all strips are added."""
        nearer, no_further = self.counts.unbind(1)
        tied = (no_further - nearer - self.own).clamp(min=0)
        a2v, v2a = (Ranks(nearer[way], tied[way], self.own[way]) for way in (0, 1))
        return a2v, v2a

    def _meet_pairs(self, f_a: Tensor, c: Tensor) -> None:
        """Find the right answers without groups: row i for row i."""
        self.own += 1
        for rows in self.strips():
            self.right[:, rows] = (_unit(f_a[rows]) * _unit(c[rows])).sum(1)

    def _meet_groups(self, f_a: Tensor, c: Tensor, groups: Tensor) -> None:
        """Find the right answers with groups: all rows of a group for each other."""
        order = groups.argsort(stable=True)
        _, which, sizes = groups[order].unique_consecutive(return_inverse=True, return_counts=True)
        ends = sizes.cumsum(0)
        for is_counting in (False, True):  # first the best, then its ties
            # A strip holds many small groups; the narrower it is, the fewer unrelated rows are compared.
            for strip in _slices(0, len(order), min(self.block, _MEETING)):
                first, last = which[strip][[0, -1]]
                for others in _slices(int(ends[first] - sizes[first]), int(ends[last]), self.block):
                    rows, columns = order[strip], order[others]
                    cosines = _unit(f_a[rows]) @ _unit(c[columns]).T
                    cosines[which[strip, None] != which[others]] = -torch.inf
                    for way, answers, queries in ((0, cosines, rows), (1, cosines.T, columns)):
                        right = self.right[way, queries]
                        if is_counting:
                            level = answers >= right[:, None] - LEVEL
                            self.own[way, queries] += level.sum(1, dtype=torch.int32)
                        else:
                            self.right[way, queries] = right.maximum(answers.amax(1))


def strip_counts(
    f_a: Tensor, c: Tensor, right: Tensor, rows: slice, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Compare a strip of sounds with all pictures.

    Args:
        f_a: (N, D), vectors of sounds.
        c: (N, D), CLS tokens.
        right: (2, N) float32, the cosines of the right answers; see `Places`.
        rows: the strip's rows.
        block: columns at a time.

    Returns:
        (2, rows) and (2, N) int32, the number of answers nearer than the right one, and of those no further. The first
        is for the strip's sounds among all pictures, the second for all pictures among the strip's sounds.
    """
    sounds = _unit(f_a[rows])
    of_rows = torch.zeros(2, len(sounds), dtype=torch.int32)
    of_columns = torch.empty(2, len(c), dtype=torch.int32)
    # Buffers are reused: paging in new memory takes as long as the arithmetic.
    space = torch.empty(2, len(sounds) * min(block, len(c)))
    for columns in _slices(0, len(c), block):
        pictures = _unit(c[columns])
        cosines, marks = (flat[: len(sounds) * len(pictures)].view(len(sounds), -1) for flat in space)
        torch.mm(sounds, pictures.T, out=cosines)
        of_rows += _counts(cosines, right[0, rows], marks)
        of_columns[:, columns] = _counts(cosines.T, right[1, columns], marks.T)
    return of_rows, of_columns


def _counts(cosines: Tensor, right: Tensor, marks: Tensor) -> Tensor:
    """Count each query's answers (queries, answers) that are nearer than the right one, and those no further.

    float32 ones add up several times as fast as booleans; `marks` is the buffer for them.
    """
    nearer = torch.gt(cosines, (right + LEVEL)[:, None], out=marks).sum(1)
    no_further = torch.ge(cosines, (right - LEVEL)[:, None], out=marks).sum(1)
    return torch.stack([nearer, no_further]).int()


def check_finite(f_a: Tensor, c: Tensor, *, block: int = BLOCK) -> None:
    """Refuse vectors without a cosine. Nothing is nearer than NaN, so it would count as found first.

    Args:
        f_a, c, block: as for `ranks`.

    Raises:
        ValueError: for a row of NaN, infinity, or numbers that are too large for a norm in float32.
    """
    for name, x in (("f_a", f_a), ("c", c)):
        for rows in _slices(0, len(x), block):
            bad = (~torch.linalg.vector_norm(x[rows].float(), dim=1).isfinite()).nonzero()
            if len(bad):
                row = rows.start + int(bad[0])
                raise ValueError(f"{name}[{row}] is NaN, infinite or too long in float32: it can't be ranked")


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows.float(), dim=1)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))
