"""The rows of a features folder to measure, and their vectors in the form that fills the CLS slot."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_soundclip._version import __version__
from llava_soundclip.alignment import build_alignment
from llava_soundclip.alignment.projector import Projector
from llava_soundclip.encoders.whisper.fusion import Fusion
from llava_soundclip.features.splits import RECIPE, split_by_source
from llava_soundclip.features.store import FeatureFolder
from llava_soundclip.files import read_json

_AT_ONCE = 4096  # rows


def measured_rows(
    folder: FeatureFolder, projector: str | os.PathLike[str] | None, rows: str | None = None
) -> tuple[str, Tensor]:
    """Choose the rows to measure.

    Args:
        folder: a features folder.
        projector: the projector's folder, which says what its training held out; None or a Hub id: unknown.
        rows: "validation", "all" or None, as for `evaluate_retrieval`.

    Returns:
        "validation" or "all", and the rows' numbers, (n,) int64.

    Raises:
        ValueError: if `rows` is unknown, or "validation" for a folder that the projector wasn't trained on.
    """
    if rows not in ("validation", "all", None):
        raise ValueError(f"rows are validation or all, not {rows!r}")
    path = None if projector is None else Path(projector) / RECIPE
    trained = read_json(path) if path is not None and path.is_file() else None
    is_its_own = trained is not None and trained.get("features") == folder.digest()
    if rows == "all" or (rows is None and not is_its_own):
        return "all", torch.arange(len(folder))
    if not is_its_own or trained is None:
        raise ValueError(
            f"held-out clips are only known for the folder that the projector was trained on: "
            f"{'the projector has no ' + RECIPE if trained is None else 'that is another folder'}"
        )
    recipe = trained.get("recipe")
    share, seed = (recipe.get(name) if isinstance(recipe, dict) else None for name in ("validation", "seed"))
    if not isinstance(share, float) or not isinstance(seed, int):
        raise ValueError(f"{path} doesn't say which clips were held out")  # noqa: TRY004
    return "validation", split_by_source(folder.sources, share, seed)[1]


@torch.no_grad()
def aligned(
    folder: FeatureFolder, rows: Tensor, projector: Projector | None = None, alpha: float = 0.0
) -> Tensor:
    """Vectors f_a of rows: padded or cut to the tower's width, projected, or mixed.

    Args:
        folder: a features folder. Whisper's blocks are fused by the projector's fusion, or averaged without one.
        rows: (n,) integers.
        projector: the projector; None for raw vectors.
        alpha: with a projector, the share of raw in the mix (B.1).

    Returns:
        (n, D) float32.

    Raises:
        ValueError: if the projector was trained on another encoder or tower; the message names the differences. Also if
            a vector is NaN or infinite; the message names the clip.
    """
    if projector is not None:
        check_projector(folder, projector)
        projector.eval()
    align = build_alignment(
        1.0 if projector is None else alpha,
        audio_dim=folder.header.audio_dim,
        width=folder.header.width,
        projector=projector,
    )
    f_a = torch.empty(len(rows), folder.header.width)
    for at in range(0, len(rows), _AT_ONCE):
        z_a = fused(folder.rows(rows[at : at + _AT_ONCE])[0], projector)
        f_a[at : at + _AT_ONCE] = align(z_a)
    broken = (~f_a.isfinite().all(1)).nonzero().flatten()
    if len(broken):
        names = ", ".join(repr(folder.ids[row]) for row in rows[broken[:3]].tolist())
        raise ValueError(
            f"the {'raw' if projector is None else 'projected'} sounds of {len(broken)} of {len(rows)} clips are NaN or "
            f"infinite: {names}{' ...' if len(broken) > 3 else ''}"
        )
    return f_a


def seen(folder: FeatureFolder, rows: Tensor) -> Tensor:
    """CLS tokens of rows, (n, D) in the dtype of the stored features."""
    c = torch.empty(len(rows), folder.header.width, dtype=folder.header.torch_dtype)
    for at in range(0, len(rows), _AT_ONCE):
        c[at : at + _AT_ONCE] = folder.rows(rows[at : at + _AT_ONCE])[1]
    return c


def fused(audio: Tensor, projector: Projector | None = None) -> Tensor:
    """One vector per sound, (n, d_a), from (n, d_a) or from Whisper's blocks (n, L, d_a)."""
    if audio.ndim == 2:
        return audio
    fusion = Fusion.parse(projector.fusion) if projector and projector.fusion else Fusion()
    return fusion(audio, getattr(projector, "layer_weights", None))


def check_projector(folder: FeatureFolder, projector: Projector) -> None:
    """Check that features are from the projector's encoder and tower.

    Raises:
        ValueError: if they aren't; the message names every field that differs.
    """
    header = folder.header
    projector.check(
        header.encoder,
        audio_dim=header.audio_dim,
        width=header.width,
        tower=header.tower,
        tower_layer=header.tower_layer,
    )


def provenance(folder: FeatureFolder, projector: Projector | None, seed: int) -> dict[str, Any]:
    """The origin of a features folder's figures: versions, weights and seed."""
    return {
        "library": __version__,
        "torch": torch.__version__,
        "seed": seed,
        "features": folder.digest(),
        "encoder": dict(folder.header.encoder),
        "tower": folder.header.tower,
        "projector": None if projector is None else projector.config,
    }
