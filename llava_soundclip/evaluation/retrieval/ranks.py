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
_MEETING = 256  # rows whose groups are looked through at a time


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
    places = Places(f_a, c, groups, block=block)
    for rows in places.strips():
        places.add(rows, *strip_counts(f_a, c, places.right, rows, block=block))
    return places.ranks()


class Places:
    """Each query's right answers and the number of answers before them, in both directions.

    Attributes:
        right: (2, N) cosine of the best right answer.
        own: (2, N) right answers that are level with it, itself included.
        counts: (2, 2, N) of each way, answers that are nearer, and those that are no further.
    """

    def __init__(self, f_a: Tensor, c: Tensor, groups: Tensor | None = None, *, block: int = BLOCK) -> None:
        """Find the right answers; none are counted yet.

        Args:
            f_a, c, groups, block: as `ranks` takes them.

        Raises:
            ValueError: as `ranks`.
        """
        if f_a.ndim != 2 or f_a.shape != c.shape:
            raise ValueError(f"expected two (n, D), got {tuple(f_a.shape)} and {tuple(c.shape)}")
        if groups is not None and (groups.shape != f_a.shape[:1] or groups.is_floating_point()):
            raise ValueError(
                f"groups must be ({len(f_a)},) integers, got {tuple(groups.shape)} of {groups.dtype}"
            )
        self.block = block
        self.right = torch.full((2, len(f_a)), -torch.inf)
        self.own = torch.zeros(2, len(f_a), dtype=torch.int32)
        self.counts = torch.zeros(2, 2, len(f_a), dtype=torch.int32)
        if groups is None:
            self._meet_pairs(f_a, c)
        else:
            self._meet_groups(f_a, c, groups)

    def strips(self) -> Iterator[slice]:
        """Blocks of rows, whose counts are to be added."""
        return _slices(0, self.right.shape[1], self.block)

    def add(self, rows: slice, of_rows: Tensor, of_columns: Tensor) -> None:
        """Take in what `strip_counts` found."""
        self.counts[0, :, rows] += of_rows
        self.counts[1] += of_columns

    def ranks(self) -> tuple[Tensor, Tensor]:
        """The result of `ranks`, once all strips are added."""
        nearer, no_further = self.counts.unbind(1)
        a2v, v2a = 1 + nearer + (no_further - nearer - self.own).clamp(min=0) / 2
        return a2v, v2a

    def _meet_pairs(self, f_a: Tensor, c: Tensor) -> None:
        """Row i is the right answer for row i."""
        self.own += 1
        for rows in self.strips():
            self.right[:, rows] = (_unit(f_a[rows]) * _unit(c[rows])).sum(1)

    def _meet_groups(self, f_a: Tensor, c: Tensor, groups: Tensor) -> None:
        """All rows of a group are right answers for each other."""
        order = groups.argsort(stable=True)
        _, which, sizes = groups[order].unique_consecutive(return_inverse=True, return_counts=True)
        ends = sizes.cumsum(0)
        for is_counting in (False, True):  # first the best, then what is level with it
            # Of many small groups a strip has whole ones; the narrower it is, the fewer strangers meet in it.
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
        f_a: (N, D).
        c: (N, D).
        right: (2, N) float32, the cosines of the right answers; see `Places`.
        rows: the strip.
        block: columns at a time.

    Returns:
        (2, rows) and (2, N) int32: for the sounds in the strip, and for all pictures among them, the answers that are
        nearer than the right one, and those that are no further.
    """
    sounds = _unit(f_a[rows])
    of_rows = torch.zeros(2, len(sounds), dtype=torch.int32)
    of_columns = torch.empty(2, len(c), dtype=torch.int32)
    # Memory that is asked for anew is paged in anew, which takes as long as the arithmetic.
    space = torch.empty(2, len(sounds) * min(block, len(c)))
    for columns in _slices(0, len(c), block):
        pictures = _unit(c[columns])
        cosines, marks = (flat[: len(sounds) * len(pictures)].view(len(sounds), -1) for flat in space)
        torch.mm(sounds, pictures.T, out=cosines)
        of_rows += _counts(cosines, right[0, rows], marks)
        of_columns[:, columns] = _counts(cosines.T, right[1, columns], marks.T)
    return of_rows, of_columns


def _counts(cosines: Tensor, right: Tensor, marks: Tensor) -> Tensor:
    """How many of each query's answers (queries, answers) are nearer than the right one, and how many no further.

    Ones in float32 are added up several times as fast as booleans are; `marks` is the room for them.
    """
    nearer = torch.gt(cosines, (right + LEVEL)[:, None], out=marks).sum(1)
    no_further = torch.ge(cosines, (right - LEVEL)[:, None], out=marks).sum(1)
    return torch.stack([nearer, no_further]).int()


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows.float(), dim=1)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))
