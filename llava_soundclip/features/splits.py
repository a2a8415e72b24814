"""The split of clips for training and validation: by source, since neighbours from one video are nearly copies."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

RECIPE = "recipe.json"  # beside a trained projector: what its training held out of which folder


def split_by_source(sources: Sequence[str], share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to validate on; all rows of a source are on one side.

    The order of the rows doesn't matter: a source is drawn by a hash of its name and the seed.

    Args:
        sources: the source of each row.
        share: held-out share of the rows, in (0, 1); met as nearly as whole sources allow, from below, with one
            source at least.
        seed: random seed for the choice.

    Returns:
        (n_train,) and (n_validation,) int64, ascending.

    Raises:
        ValueError: for a share that isn't in (0, 1), or fewer than two sources.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to validate on must be in (0, 1), got {share!r}")
    counts: dict[str, int] = {}
    for source in sources:
        counts[source] = counts.get(source, 0) + 1
    if len(counts) < 2:
        raise ValueError(
            f"{len(counts)} source: validation needs clips of another video than those that are trained on"
        )
    drawn = sorted(counts, key=lambda source: hashlib.sha256(f"{seed}:{source}".encode()).digest())
    kept, rows = {drawn[0]}, counts[drawn[0]]
    for source in drawn[1:-1]:  # one is left to train on
        if rows + counts[source] <= share * len(sources):
            kept.add(source)
            rows += counts[source]
    validates = torch.tensor([source in kept for source in sources])
    return (~validates).nonzero().flatten(), validates.nonzero().flatten()
