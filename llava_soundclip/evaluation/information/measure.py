"""All estimators for a features folder, raw and projected."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_soundclip.alignment import RawPad
from llava_soundclip.alignment.projector import Projector
from llava_soundclip.evaluation.information.common import drawn_in_turn, numbered
from llava_soundclip.evaluation.information.dimension import intrinsic_dimension
from llava_soundclip.evaluation.information.shared import Bound, cka, held_out_bound, independence
from llava_soundclip.evaluation.information.unique import probe
from llava_soundclip.evaluation.vectors import aligned, fused, seen
from llava_soundclip.features.store import FeatureFolder

LIMIT = 2000  # maximum number of clips: comparing all with all takes n^2 numbers
GEOMETRY = 100  # number of clips for geometry if there are fewer sources


@torch.no_grad()
def measure_information(
    folder: FeatureFolder,
    projector: Projector | None,
    rows: Tensor,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    apart: str = "source",
    limit: int = LIMIT,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of a features folder, raw and projected, with intervals over sources.

    Raw is z_a. Whisper's blocks are fused by the projector's fusion, so that raw and projected differ in the projecting
    only. For the cosine, raw is padded or cut to the tower's width.

    Args:
        folder: a features folder.
        projector: the projector; None measures raw vectors only.
        rows: (n,) integers: clips that the projector wasn't trained on.
        labels: by name, the label of each clip by id, such as {"kind": {"clip-0": "dog", ...}}; see `probe` for
            their types. Clips without a label, or with None or NaN, are left out. So are clips of a class that occurs
            in one group only: a probe can't learn it from others.
        apart: the unit that probes hold out together. "clip" is for labels that are finer than sources.
        limit: maximum number of clips, for each label and for the other measures. They are drawn from sources in turn:
            the second clip of a source comes after the first clip of all.
        seed: random seed for the draws.

    Returns:
        - "shared": under "raw" and "projected" the bounds with both critics in nats, "cka", and "p" of
          `independence`; under "gain" the bounds projected minus raw.
        - "unique": for each label, the probes of "raw", "projected" and "picture", their "chance", "lost" (raw minus
          projected, paired), and "left_out", the numbers of clips and classes left out.
        - "unmeasured": a sentence for each label that no probe can be fitted to, if one can be fitted to another.
        - "dimension": dimensions of "raw", "projected" and "picture".
        - provenance: clips, rows, weights and versions.

        The dimensions and "cka" are of one clip per source, or of 100 clips drawn in turn if there are fewer sources.

    Raises:
        ValueError: if the projector doesn't fit, there are no clips or too few sources, or no probe can be fitted to
            any of the labels; the message names each.
        ImportError: if scipy or, for labels, scikit-learn isn't installed.
    """
    if apart not in ("source", "clip"):
        raise ValueError(f"apart is source or clip, not {apart!r}")
    if not len(rows):
        raise ValueError("there are no clips to measure")
    ids = [folder.ids[row] for row in rows.tolist()]
    sources = numbered([folder.sources[row] for row in rows.tolist()], len(rows))

    def vectors(drawn: Tensor) -> dict[str, Tensor]:
        projected = {} if projector is None else {"projected": aligned(folder, rows[drawn], projector)}
        z_a = fused(folder.rows(rows[drawn])[0], projector)
        return {"raw": z_a, **projected, "picture": seen(folder, rows[drawn])}

    drawn = drawn_in_turn(sources, limit, seed)
    groups = sources[drawn.numpy()]
    sides = vectors(drawn)
    c = sides["picture"]
    few = drawn_in_turn(groups, max(GEOMETRY, len(np.unique(groups))), seed)
    dimension = {
        name: {
            what: each.as_dict() for what, each in intrinsic_dimension(x[few], groups[few], seed=seed).items()
        }
        for name, x in sides.items()
    }
    bounds = {name: _bounds(x, c, groups, seed) for name, x in sides.items() if name != "picture"}
    shared: dict[str, Any] = {
        name: {
            **{critic: bound.as_dict(seed=seed) for critic, bound in found.items()},
            "cka": cka(sides[name][few], c[few], groups[few], seed=seed).as_dict(),
            "p": independence(sides[name], c, groups, seed=seed),
        }
        for name, found in bounds.items()
    }
    if projector is not None:
        shared["gain"] = {
            critic: bound.minus(bounds["raw"][critic], seed=seed).as_dict()
            for critic, bound in bounds["projected"].items()
        }
    unique, unmeasured = {}, []
    for label, values in (labels or {}).items():
        known = np.array([row for row, id in enumerate(ids) if not _is_missing(values.get(id))], dtype=int)
        if not len(known):
            unmeasured.append(f"the label {label!r} has a value for none of the {len(ids)} clips")
            continue
        chosen = torch.from_numpy(known)[drawn_in_turn(sources[known], limit, seed)]
        try:
            unique[label] = _probes(
                vectors(chosen),
                np.asarray([values[ids[row]] for row in chosen.tolist()]),
                sources[chosen.numpy()] if apart == "source" else chosen.numpy(),
                seed,
            )
        except ValueError as error:
            unmeasured.append(f"the label {label!r}: {error}")
    if unmeasured and not unique:
        raise ValueError("; ".join(unmeasured))
    return {
        "what": "information",
        "clips": len(rows),
        "drawn": len(drawn),
        "sources": len(np.unique(groups)),
        "geometry_clips": len(few),
        "seed": seed,
        "apart": apart,
        "shared": shared,
        "unique": unique,
        "unmeasured": unmeasured,
        "dimension": dimension,
    }


def _bounds(x: Tensor, c: Tensor, groups: np.ndarray, seed: int) -> dict[str, Bound]:
    return {
        "cosine": held_out_bound(RawPad(c.shape[1])(x), c, groups, critic="cosine", seed=seed),
        "linear": held_out_bound(x, c, groups, critic="linear", seed=seed),
    }


def _probes(sides: Mapping[str, Tensor], labels: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    kept = _in_two_groups(labels, groups)
    found = {name: probe(x[kept], labels[kept], groups[kept]) for name, x in sides.items()}
    raw = found["raw"]
    result = {name: each.as_dict(seed=seed) for name, each in found.items()}
    if "projected" in found:
        result["lost"] = raw.minus(found["projected"], seed=seed).as_dict()
    left_out = {"clips": int((~kept).sum()), "classes": len(np.unique(labels[~kept]))}
    return {
        "measure": raw.measure,
        "chance": raw.chance,
        "clips": int(kept.sum()),
        "left_out": left_out,
        **result,
    }


def _in_two_groups(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mask (n,) of rows whose class is in two groups or more; all rows if there are fewer than two such classes."""
    if labels.dtype.kind in "Uiub":
        several = [each for each in np.unique(labels) if len(np.unique(groups[labels == each])) > 1]
        if len(several) > 1:
            return np.isin(labels, several)
    return np.ones(len(labels), dtype=bool)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
