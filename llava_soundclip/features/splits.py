"""The split of clips for training and validation, by source: clips of one video are nearly copies."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

RECIPE = "recipe.json"  # file next to a trained projector, with its features folder and held-out split
FEWEST = 2  # rows per side: a single pair has no other to be told from, and is always found first


def split_by_source(sources: Sequence[str], share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split rows for training and validation. All rows of a source are on the same side.

    The order of the rows doesn't matter: sources are drawn by a hash of their name and the seed.

    Args:
        sources: the source of each row.
        share: held-out share of the rows, in (0, 1). The split has as many whole sources as fit into it, but at
            least two rows on each side.
        seed: random seed for the choice.

    Returns:
        Row indices, ascending: (n_train,) and (n_validation,) int64.

    Raises:
        ValueError: for a share that isn't in (0, 1), or if no whole sources leave two rows on each side.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to validate on must be in (0, 1), got {share!r}")
    counts: dict[str, int] = {}
    for source in sources:
        counts[source] = counts.get(source, 0) + 1
    if len(counts) < 2:
        raise ValueError(f"{len(counts)} source: validation needs clips of another video")
    drawn = sorted(counts, key=lambda source: hashlib.sha256(f"{seed}:{source}".encode()).digest())
    kept: set[str] = set()
    rows = 0

    def keep(source: str, most: float) -> None:
        nonlocal rows
        after = rows + counts[source]
        if source not in kept and after <= most and len(sources) - after >= FEWEST:
            kept.add(source)
            rows = after

    keep(drawn[0], len(sources))
    for source in drawn[1:-1]:
        keep(source, share * len(sources))
    for source in drawn:  # if too few fit into the share
        if rows < FEWEST:
            keep(source, len(sources))
    if rows < FEWEST:
        raise ValueError(
            f"{len(sources)} clips of {len(counts)} videos can't be split: {FEWEST} clips are needed to train on, and "
            f"{FEWEST} of other videos for validation. Add clips of other videos"
        )
    validates = torch.tensor([source in kept for source in sources])
    return (~validates).nonzero().flatten(), validates.nonzero().flatten()
