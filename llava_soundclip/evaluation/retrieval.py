"""Cross-modal retrieval as the paper measures it (Appendix E)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ITEMS = 100  # drawn at a time
POOL = 500  # at most, from which they are drawn
REPEATS = 5
TOPS = (1, 3, 10)


@dataclass(frozen=True)
class Retrieval:
    """How well one side finds the other.

    Attributes:
        mean_rank: of the right item among `items`, 1 is best; the mean over all repeats. Chance is (items + 1) / 2.
        recall: share of queries whose right item is among the first n, by n.
        items: how many there were to choose from.
    """

    mean_rank: float
    recall: dict[int, float]
    items: int

    def as_dict(self) -> dict[str, float]:
        """The figures under the names that logs use: mean_rank, R@1, R@3, R@10, items."""
        shares = {f"R@{top}": share for top, share in self.recall.items()}
        return {"mean_rank": self.mean_rank, **shares, "items": self.items}


def ranks(queries: Tensor, items: Tensor) -> Tensor:
    """The place of each query's own item among all, by cosine.

    Items that are as near as the right one share their places: each has the mean of them.

    Args:
        queries: (n, D) of any float dtype; computed in float32.
        items: (n, D); row i is the right one for query i.

    Returns:
        (n,) float32, 1 is best.

    Raises:
        ValueError: if the two aren't matrices of one shape.
    """
    if queries.ndim != 2 or queries.shape != items.shape:
        raise ValueError(f"expected two (n, D), got {tuple(queries.shape)} and {tuple(items.shape)}")
    cosine = functional.normalize(queries.float(), dim=1) @ functional.normalize(items.float(), dim=1).T
    right = cosine.diagonal()[:, None]
    ahead, level = (cosine > right).sum(1), (cosine == right).sum(1) - 1
    return 1 + ahead + level / 2


def retrieval(f_a: Tensor, c: Tensor, *, seed: int = 0) -> dict[str, Retrieval]:
    """Appendix E: 100 random pairs from a pool of up to 500, five times, averaged.

    With fewer than 100 pairs all of them are taken, once.

    Args:
        f_a: (n, D) vectors of sounds in the tower's space.
        c: (n, D) CLS tokens; row i belongs to row i.
        seed: of what is drawn.

    Returns:
        "A2V", pictures found by sounds, and "V2A".

    Raises:
        ValueError: if the two aren't matrices of one shape, or hold no row.
    """
    if not len(f_a):
        raise ValueError("retrieval needs one pair at least")
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randperm(len(f_a), generator=generator)[:POOL]
    size = min(ITEMS, len(pool))
    draws = [
        pool[torch.randperm(len(pool), generator=generator)[:size]]
        for _ in range(REPEATS if len(pool) > size else 1)
    ]
    found = {}
    for name, queries, items in (("A2V", f_a, c), ("V2A", c, f_a)):
        rank = torch.cat([ranks(queries[rows], items[rows]) for rows in draws])
        recall = {top: (rank <= top).float().mean().item() for top in TOPS}
        found[name] = Retrieval(rank.mean().item(), recall, size)
    return found
