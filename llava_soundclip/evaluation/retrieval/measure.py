"""Cross-modal retrieval: as the paper measures it (Appendix E), and over all clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_soundclip.evaluation.retrieval.ranks import ranks

if TYPE_CHECKING:
    import numpy as np

    from llava_soundclip.evaluation.intervals import Interval

ITEMS = 100  # drawn at a time
POOL = 500  # at most, from which they are drawn
REPEATS = 5
TOPS = (1, 3, 10)
FIGURES = ("mean_rank", *(f"R@{top}" for top in TOPS))


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well one side finds the other.

    Attributes:
        rows: (repeats, items) which clips were drawn.
        ranks: (repeats, items) float32, the place of each one's right answer among them, 1 is best.
        right: (repeats, items) how many answers are right.
        sources: (repeats, items) integers, each clip's video or recording, over which intervals are; None: over clips.
    """

    rows: Tensor
    ranks: Tensor
    right: Tensor
    sources: Tensor | None = None

    @property
    def items(self) -> int:
        """How many there were to choose from."""
        return self.ranks.shape[1]

    @property
    def mean_rank(self) -> float:
        """The mean over all repeats."""
        return self.ranks.mean().item()

    @property
    def recall(self) -> dict[int, float]:
        """Share of queries whose right answer is among the first n, by n."""
        return {top: (self.ranks <= top).float().mean().item() for top in TOPS}

    def as_dict(self) -> dict[str, float]:
        """The figures under the names that logs use: mean_rank, R@1, R@3, R@10, items."""
        shares = {f"R@{top}": share for top, share in self.recall.items()}
        return {"mean_rank": self.mean_rank, **shares, "items": self.items}

    def histogram(self) -> list[int]:
        """How many queries had their right answer first, second, ...; of places in halves the better one."""
        return self.ranks.floor().long().flatten().bincount(minlength=self.items + 1)[1:].tolist()

    def chance(self) -> dict[str, float]:
        """The figures of answers in random order; where one is right, a mean rank of (items + 1) / 2."""
        right = self.right.double()
        wrong = self.items - right
        figures = {"mean_rank": (1 + wrong / (right + 1)).mean().item()}
        for top in TOPS:
            places = torch.arange(min(top, self.items))
            missed = (wrong[..., None] - places).clamp(min=0) / (self.items - places)
            figures[f"R@{top}"] = (1 - missed.prod(-1)).mean().item()
        return figures

    def figures(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """The same figures, each with its interval over sources, or clips, and its spread over repeats.

        Args:
            seed: random seed for the bootstrap.

        Returns:
            For "mean_rank", "R@1", "R@3" and "R@10" an `Interval`'s fields and "repeats", the figure of each repeat.

        Raises:
            ImportError: if scipy isn't installed.
        """
        from llava_soundclip.evaluation.intervals import mean

        return {
            name: mean(value.double().numpy().ravel(), self._groups(), seed=seed).as_dict()
            | {"repeats": value.mean(1).tolist()}
            for name, value in self._values().items()
        }

    def minus(self, other: "Retrieval", *, seed: int = 0) -> dict[str, "Interval"]:
        """How far the figures are above those of other vectors of the same clips, clip by clip.

        Raises:
            ValueError: if the two weren't measured with the same draws.
            ImportError: if scipy isn't installed.
        """
        if not torch.equal(self.rows, other.rows):
            raise ValueError("the two weren't measured with the same draws: give both the same seed")
        from llava_soundclip.evaluation.intervals import difference

        theirs = other._values()
        return {
            name: difference(
                value.double().numpy().ravel(),
                theirs[name].double().numpy().ravel(),
                self._groups(),
                seed=seed,
            )
            for name, value in self._values().items()
        }

    def _values(self) -> dict[str, Tensor]:
        return {"mean_rank": self.ranks, **{f"R@{top}": (self.ranks <= top).float() for top in TOPS}}

    def _groups(self) -> "np.ndarray":
        """Numbers of the units that are resampled, (repeats * items,): a clip drawn more than once is one unit."""
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
    """Appendix E: 100 random pairs from a pool of up to 500, five times.

    With fewer than 100 pairs all of them are taken, once.

    Args:
        f_a: (n, D) vectors of sounds in the tower's space.
        c: (n, D) CLS tokens; row i belongs to row i.
        groups: (n,) integers; rows of one group are right answers for each other. See `group_rows`.
        seed: random seed for the draws.
        full: take all pairs, once, however many there are.
        ray: with `full`, the address of a Ray cluster that does it; see `ranks_on_ray`. None: this process.
        sources: (n,) integers, over which intervals are; by default each clip is its own.

    Returns:
        "A2V", pictures found by sounds, and "V2A".

    Raises:
        ValueError: if the two aren't matrices of one shape, hold no row, `groups` doesn't fit, or `ray` comes without
            `full`.
        ImportError, ConnectionError, RuntimeError: with `ray`, as `ranks_on_ray`.
    """
    if not len(f_a):
        raise ValueError("retrieval needs one pair at least")
    if ray is not None and not full:
        raise ValueError("ray goes with full alone: draws of 100 need no cluster")
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
        side: Retrieval(rows, torch.stack(each), torch.stack(right), drawn_sources)
        for side, each in zip(("A2V", "V2A"), zip(*found, strict=True), strict=True)
    }


def _sizes(groups: Tensor) -> Tensor:
    """How many rows each row's group has."""
    _, which, counts = groups.unique(return_inverse=True, return_counts=True)
    return counts[which]


def group_rows(names: Sequence[str]) -> Tensor:
    """Number names, such as videos or labels, so that rows of one name are one group: (n,) int64."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)
