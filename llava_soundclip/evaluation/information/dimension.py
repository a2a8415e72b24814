"""Dimension of a set of vectors: by their neighbours, and by their variance."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llava_soundclip.evaluation.information.common import Groups, Vectors, around_mean, matrix, numbered
from llava_soundclip.evaluation.information.figures import Halved, halved

KEPT = 0.9  # share of the ratios that TwoNN uses: Facco et al. discard the largest tenth


def intrinsic_dimension(x: Vectors, groups: Groups | None = None, *, seed: int = 0) -> dict[str, Halved]:
    """Number of dimensions that vectors fill; F.1 says that sounds and pictures differ in it.

    An invertible projector, a diffeomorphism as in Theorem F.1, leaves the true dimension unchanged. A lower dimension
    after projecting can show that differences between neighbouring clips were flattened. Neither figure says which
    dimensions they are, or whether they are useful.

    Args:
        x: (n, d) floats: vectors, raw or projected, or c.
        groups: (n,) sources, for the interval; by default each clip is its own source. If a source's clips are near
            copies, give one clip per source. Copies are each other's neighbours, so that their differences would be
            measured.
        seed: random seed for the interval.

    Returns:
        The results of `two_nn` and `participation_ratio`, under these names. `half` is TwoNN at the distances of half
        as many clips.

    Raises:
        ValueError: for other shapes, NaN, fewer than 20 distinct vectors, only ties, or if half of the sources may have
            fewer than 10 distinct vectors.
    """
    distinct, rows = _distinct(x)
    numbers = numbered(groups, len(x))[rows]
    distances = _distances(distinct)
    values = distinct.numpy()
    figures: dict[str, tuple[float, Callable[[np.ndarray], float]]] = {
        "two_nn": (_two_nn(distances), lambda rows: _two_nn(distances[np.ix_(rows, rows)])),
        "participation_ratio": (
            participation_ratio(distinct),
            lambda rows: participation_ratio(values[rows]),
        ),
    }
    return {
        name: halved(value, numbers, figure, least=10, seed=seed) for name, (value, figure) in figures.items()
    }


def two_nn(x: Vectors) -> float:
    """Dimension from each vector's two nearest neighbours (TwoNN, Facco et al. 2017), by maximum likelihood.

    Where density hardly changes within that distance, mu = r2 / r1 has the distribution 1 - mu^-d. The largest tenth of
    the ratios, which the authors discard, enters only as "larger than the rest". TwoNN also measures curved surfaces,
    but only at the scale of neighbours, where noise adds dimensions. Above about ten dimensions the estimate is low
    unless there are very many vectors.

    Args:
        x: (n, d) floats; equal rows count once.

    Raises:
        ValueError: for other shapes, NaN, fewer than 20 distinct vectors, or only ties.
    """
    return _two_nn(_distances(_distinct(x)[0]))


def participation_ratio(x: Vectors) -> float:
    """Dimension of the cloud as a whole: (sum l)^2 / sum l^2 over the eigenvalues l of the covariance.

    It is d if d directions have equal variance and the others none. It counts straight directions, so a curved line
    counts as two or more. It weighs directions by variance, so stretching a column changes it. It is below n, and too
    low unless n is far above it.

    Args:
        x: (n, d) floats.

    Raises:
        ValueError: for other shapes, NaN, or rows that are all alike.
    """
    centred = around_mean(matrix(x, "x"), "x")
    scatter = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    return (scatter.trace() ** 2 / scatter.square().sum()).item()


def _distinct(x: Vectors) -> tuple[Tensor, np.ndarray]:
    """The distinct rows as float64, and their numbers in x."""
    values, rows = np.unique(matrix(x, "x").numpy(), axis=0, return_index=True)
    if len(rows) < 20:
        raise ValueError(f"{len(rows)} distinct vectors are too few for a dimension: give at least 20")
    return torch.from_numpy(values), rows


def _distances(distinct: Tensor) -> np.ndarray:
    # Matrix products would be faster, but would round small distances to 0.
    distances = torch.cdist(distinct, distinct, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(math.inf).numpy()


def _two_nn(distances: np.ndarray) -> float:
    nearest = np.partition(distances, 1, axis=1)[:, :2]
    logs = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    kept = int(KEPT * len(logs))
    # log(mu) is exponential with rate d, and the discarded ratios are censored at the largest kept one.
    total = logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1]
    if not total > 0:
        raise ValueError(
            "every vector is as far from its second neighbour as from its first: no dimension can be estimated"
        )
    return float((kept - 1) / total)
