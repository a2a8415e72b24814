"""The split of clips for training and validation, by source: clips of one video are nearly copies."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

RECIPE = "recipe.json"  # file next to a trained projector, with its features folder and held-out split


def split_by_source(sources: Sequence[str], share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split rows for training and validation. All rows of a source are on the same side.

    The order of the rows doesn't matter: sources are drawn by a hash of their name and the seed.

    Args:
        sources: the source of each row.
        share: held-out share of the rows, in (0, 1). The split has as many whole sources as fit into it, but at
            least one.
        seed: random seed for the choice.

    Returns:
        Row indices, ascending: (n_train,) and (n_validation,) int64.

    Raises:
        ValueError: for a share that isn't in (0, 1), or fewer than two sources.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to validate on must be in (0, 1), got {share!r}")
    counts: dict[str, int] = {}
    for source in sources:
        counts[source] = counts.get(source, 0) + 1
    if len(counts) < 2:
        raise ValueError(f"{len(counts)} source: validation needs clips of another video")
    drawn = sorted(counts, key=lambda source: hashlib.sha256(f"{seed}:{source}".encode()).digest())
    kept, rows = {drawn[0]}, counts[drawn[0]]
    for source in drawn[1:-1]:  # one source is left for training
        if rows + counts[source] <= share * len(sources):
            kept.add(source)
            rows += counts[source]
    validates = torch.tensor([source in kept for source in sources])
    return (~validates).nonzero().flatten(), validates.nonzero().flatten()
