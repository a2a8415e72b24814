"""Cross-modal retrieval: by the paper's protocol (Appendix E), or over all clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_soundclip.evaluation.retrieval.ranks import Ranks, check_finite, ranks

if TYPE_CHECKING:
    import numpy as np

    from llava_soundclip.evaluation.intervals import Interval

ITEMS = 100  # pairs per draw
POOL = 500  # largest pool that they are drawn from
REPEATS = 5
TOPS = (1, 3, 10)
FIGURES = ("mean_rank", *(f"R@{top}" for top in TOPS))


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Retrieval in one direction, such as pictures found by sounds. Vectors that are all equal are at chance.

    Attributes:
        rows: (repeats, items) int64, the clips that were drawn.
        places: (repeats, items), the rank of each query's right answer among the items, with its ties.
        right: (repeats, items) int64, the number of right answers of each query.
        sources: (repeats, items) integers, the video or recording of each clip: intervals are over these. None: over
            clips.
    """

    rows: Tensor
    places: Ranks
    right: Tensor
    sources: Tensor | None = None

    @property
    def items(self) -> int:
        """Number of items to choose from."""
        return self.rows.shape[1]

    @property
    def ranks(self) -> Tensor:
        """(repeats, items) float64, the expected rank of each query's right answer; 1 is best."""
        return self.places.mean

    @property
    def mean_rank(self) -> float:
        """The mean rank over all queries and repeats."""
        return self.ranks.mean().item()

    @property
    def recall(self) -> dict[int, float]:
        """Share of queries whose right answer is among the top n, for each n of `TOPS`."""
        return {top: self.places.within(top).mean().item() for top in TOPS}

    def as_dict(self) -> dict[str, float]:
        """The figures by name, as in logs: mean_rank, R@1, R@3, R@10, items."""
        return {**_means(self.places), "items": self.items}

    def histogram(self) -> list[float]:
        """Number of queries with their right answer at rank 1, 2, ...; ties are spread over their ranks."""
        ties = torch.stack([self.places.ahead, self.places.tied, self.places.right]).flatten(1).long()
        is_tied = ties[1] > 0
        counts = ties[0, ~is_tied].bincount(minlength=self.items).double()
        several, queries = ties[:, is_tied].unique(dim=1, return_counts=True)
        for (ahead, wrong, right), times in zip(several.T.tolist(), queries.tolist(), strict=True):
            place = torch.arange(wrong, dtype=torch.float64)
            missed = ((wrong - place) / (wrong + right - place)).cumprod(0)  # after 1, 2, ... tied answers
            edges = torch.cat([missed.new_ones(1), missed, missed.new_zeros(1)])
            counts[ahead : ahead + wrong + 1] -= times * edges.diff()
        return counts.tolist()

    def chance(self) -> dict[str, float]:
        """The figures for answers in random order; with one right answer the mean rank is (items + 1) / 2."""
        return _means(Ranks(torch.zeros_like(self.right), self.items - self.right, self.right))

    def figures(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """The figures with intervals over sources (or clips), and the figure of each repeat.

        Args:
            seed: random seed for the bootstrap.

        Returns:
            For "mean_rank", "R@1", "R@3" and "R@10": an `Interval`'s fields and "repeats", one figure per repeat.

        Raises:
            ImportError: if scipy isn't installed.
        """
        from llava_soundclip.evaluation.intervals import mean

        return {
            name: mean(value.numpy().ravel(), self._groups(), seed=seed).as_dict()
            | {"repeats": value.mean(1).tolist()}
            for name, value in _values(self.places).items()
        }

    def minus(self, other: "Retrieval", *, seed: int = 0) -> dict[str, "Interval"]:
        """This retrieval minus that of other vectors of the same clips, paired by clip.

        Args:
            other: retrieval with the same draws.
            seed: random seed for the bootstrap.

        Returns:
            The differences by name of figure, with intervals.

        Raises:
            ValueError: if the two weren't measured with the same draws.
            ImportError: if scipy isn't installed.
        """
        if not torch.equal(self.rows, other.rows):
            raise ValueError("the two weren't measured with the same draws: give both the same seed")
        from llava_soundclip.evaluation.intervals import difference

        theirs = _values(other.places)
        return {
            name: difference(
                value.numpy().ravel(),
                theirs[name].numpy().ravel(),
                self._groups(),
                seed=seed,
            )
            for name, value in _values(self.places).items()
        }

    def _groups(self) -> "np.ndarray":
        """Number of the resampled unit of each item, (repeats * items,): a clip drawn twice is one unit."""
        drawn = self.rows if self.sources is None else self.sources
        return drawn.unique(return_inverse=True)[1].flatten().numpy()


def retrieval(
    f_a: Tensor,
    c: Tensor,
    groups: Tensor | None = None,
    *,
    seed: int = 0,
    full: bool = False,
    ray: str | None = None,
    sources: Tensor | None = None,
) -> dict[str, Retrieval]:
    """Retrieval by Appendix E's protocol: 100 random pairs from a pool of up to 500, five times.

    With 100 pairs or fewer, all of them are taken once.

    Args:
        f_a: (n, D) vectors of sounds in the tower's space.
        c: (n, D) CLS tokens; row i belongs to row i.
        groups: (n,) integers; rows of one group are right answers for each other. See `group_rows`.
        seed: random seed for the draws.
        full: take all pairs once, however many there are.
        ray: with `full`, the address of a Ray cluster that computes the ranks; see `ranks_on_ray`. None: this process.
        sources: (n,) integers, the source of each clip, for the intervals; by default each clip is its own source.

    Returns:
        "A2V", pictures found by sounds, and "V2A", sounds found by pictures.

    Raises:
        ValueError: if the two aren't matrices of one shape, have no rows, `groups` doesn't fit, a vector is NaN or
            infinite, or `ray` comes without `full`.
        ImportError, ConnectionError, RuntimeError: with `ray`, as for `ranks_on_ray`.
    """
    if not len(f_a):
        raise ValueError("retrieval needs at least one pair")
    if ray is not None and not full:
        raise ValueError("ray needs full=True: draws of 100 need no cluster")
    if f_a.ndim == c.ndim == 2:  # also rows that aren't drawn; `ranks` checks the shapes
        check_finite(f_a, c)
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.arange(len(f_a))]
    if not full:
        pool = torch.randperm(len(f_a), generator=generator)[:POOL]
        size = min(ITEMS, len(pool))
        repeats = REPEATS if len(pool) > size else 1
        draws = [pool[torch.randperm(len(pool), generator=generator)[:size]] for _ in range(repeats)]
    found, right = [], []
    for drawn in draws:
        own = None if groups is None else groups[drawn]
        if ray is not None:
            from llava_soundclip.evaluation.retrieval.cluster import ranks_on_ray

            found.append(ranks_on_ray(f_a, c, own, address=ray))
        else:
            found.append(ranks(f_a, c, own) if full else ranks(f_a[drawn], c[drawn], own))
        right.append(torch.ones(len(drawn), dtype=torch.long) if own is None else _sizes(own))
    rows = torch.stack(draws)
    drawn_sources = None if sources is None else sources[rows]
    return {
        side: Retrieval(rows, _stacked(each), torch.stack(right), drawn_sources)
        for side, each in zip(("A2V", "V2A"), zip(*found, strict=True), strict=True)
    }


def _stacked(repeats: Sequence[Ranks]) -> Ranks:
    """The ranks of all repeats as (repeats, items)."""
    return Ranks(
        torch.stack([each.ahead for each in repeats]),
        torch.stack([each.tied for each in repeats]),
        torch.stack([each.right for each in repeats]),
    )


def _values(places: Ranks) -> dict[str, Tensor]:
    """The figures of each query by name, float64."""
    return {"mean_rank": places.mean, **{f"R@{top}": places.within(top) for top in TOPS}}


def _means(places: Ranks) -> dict[str, float]:
    return {name: value.mean().item() for name, value in _values(places).items()}


def _sizes(groups: Tensor) -> Tensor:
    """Size of each row's group."""
    _, which, counts = groups.unique(return_inverse=True, return_counts=True)
    return counts[which]


def group_rows(names: Sequence[str]) -> Tensor:
    """Number names, such as videos or labels, so that rows with the same name are one group: (n,) int64."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)
