"""Retrieval of a features folder: from files to figures that can be written as JSON."""

import os
from collections.abc import Sequence
from typing import Any

from llava_soundclip.alignment.projector import Projector
from llava_soundclip.evaluation.retrieval.measure import group_rows, retrieval
from llava_soundclip.evaluation.vectors import aligned, measured_rows, provenance, seen
from llava_soundclip.features.store import FeatureFolder


def evaluate_retrieval(
    features: str | os.PathLike[str],
    projector: Projector | None = None,
    *,
    trained_in: str | os.PathLike[str] | None = None,
    rows: str | None = None,
    full: bool = False,
    right: str = "pair",
    alphas: Sequence[float] = (),
    seed: int = 0,
    ray: str | None = None,
) -> dict[str, Any]:
    """Measure retrieval on a features folder (Appendix E), raw and projected, with intervals over videos.

    Args:
        features: a folder made by `llava-soundclip features`.
        projector: the projector; None measures raw vectors only.
        trained_in: the projector's folder, which says what its training held out; None or a Hub id: unknown.
        rows: "validation", the clips that the projector's training held out, or "all". By default "validation" if
            the projector was trained on this folder, else "all".
        full: rank all clips at once instead of Appendix E's draws.
        right: the right answers: "pair" for a clip's own picture, "source" for any picture of its video.
        alphas: further mixes to measure, from 0 (projected) to 1 (raw) (B.1).
        seed: random seed for the draws and the intervals.
        ray: with `full`, the address of a Ray cluster that computes the ranks; see `ranks_on_ray`. None: this process.

    Returns:
        "figures" by alignment, side ("A2V", "V2A") and name, each with an `Interval`'s fields and "repeats"; "gain",
        projected minus raw, paired by clip; "chance"; and provenance: clips, rows, protocol, weights and versions.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the projector doesn't fit, `rows="validation"` is asked of a folder that it wasn't trained on, a
            choice is unknown, or `ray` comes without `full`.
        ImportError: if scipy isn't installed.
        ConnectionError, RuntimeError: with `ray`, as for `ranks_on_ray`.
    """
    if right not in ("pair", "source"):
        raise ValueError(f"right is pair or source, not {right!r}")
    folder = FeatureFolder(features)
    rows, chosen = measured_rows(folder, trained_in, rows)
    c = seen(folder, chosen)
    sources = group_rows([folder.sources[row] for row in chosen.tolist()])
    groups = sources if right == "source" else None
    mixes: dict[str, float] = {"raw": 1.0}
    if projector is not None:
        mixes |= {"projected": 0.0, **{f"alpha {alpha:g}": alpha for alpha in alphas}}
    elif alphas:
        raise ValueError("alphas mix raw and projected: give a projector")
    found = {
        name: retrieval(
            aligned(folder, chosen, projector, alpha),
            c,
            groups,
            seed=seed,
            full=full,
            ray=ray,
            sources=sources,
        )
        for name, alpha in mixes.items()
    }
    drawn = found["raw"]["A2V"]
    return {
        "what": "retrieval",
        "protocol": f"{drawn.items} at a time, drawn {len(drawn.rows)} times"
        if len(drawn.rows) > 1
        else "all at once",
        "clips": len(chosen),
        "rows": rows,
        "right": right,
        "figures": {
            name: {side: each.figures(seed=seed) for side, each in sides.items()}
            for name, sides in found.items()
        },
        "histogram": {
            name: {side: each.histogram() for side, each in sides.items()} for name, sides in found.items()
        },
        "gain": {
            side: {
                name: interval.as_dict()
                for name, interval in each.minus(found["raw"][side], seed=seed).items()
            }
            for side, each in found.get("projected", {}).items()
        },
        "chance": drawn.chance(),
        "provenance": provenance(folder, projector, seed),
    }
