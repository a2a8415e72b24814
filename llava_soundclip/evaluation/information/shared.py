"""Information shared by sound and picture: bounds, similarity of geometry, and independence."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llava_soundclip.evaluation.information.common import (
    PENALTIES,
    Groups,
    Vectors,
    around_mean,
    drawn_in_turn,
    matrix,
    numbered,
)
from llava_soundclip.evaluation.information.figures import Halved, Ratio, halved
from llava_soundclip.features.splits import split_by_source

TAUS = tuple(np.geomspace(0.01, 10, 19).tolist())  # at 10 a critic tells nothing apart, and its bound is 0
PERMUTATIONS = 199
PERMUTED = 1000  # maximum number of clips: each permutation compares all with all


@dataclass(frozen=True, eq=False)
class Bound(Ratio):
    """A lower bound on I_shared in nats, the mean of `gain`.

    Attributes:
        tau: the critic's temperature.
        at_most: log N, the bound's ceiling, however much is shared.
    """

    tau: float
    at_most: float

    def as_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """The interval's fields with `tau` and `at_most`, for JSON."""
        return {**self.interval(seed=seed).as_dict(), "at_most": self.at_most, "tau": self.tau}


def infonce_bound(f_a: Vectors, c: Vectors, groups: Groups | None = None, *, tau: float) -> Bound:
    """I_shared >= log N - L_NCE, with the critic cos(f_a, c) / tau (van den Oord et al. 2018; L_NCE of F.4).

    It can show that at least this much is shared, within reach of a cosine. It can't show that no more is shared. A low
    bound may be the critic's fault, as with raw vectors, whose axes are unrelated to c's; and log N is its ceiling. It
    holds on average over independent pairs that neither the projector nor tau was fitted to, so use held-out clips.
    Several clips of one source are confused with each other and lower it.

    Args:
        f_a: (n, D) floats, vectors of sounds.
        c: (n, D) floats, CLS tokens.
        groups: (n,) sources, for the interval; by default each clip is its own source.
        tau: the temperature, above 0. Training has its own in `Recipe.temperature`.

    Returns:
        The mean of both directions, each of which is a bound.

    Raises:
        ValueError: for other shapes, NaN, fewer than 2 pairs, or a tau that isn't above 0.
    """
    f_a, c = matrix(f_a, "f_a"), matrix(c, "c")
    if f_a.shape != c.shape or len(f_a) < 2:
        raise ValueError(
            f"expected at least 2 pairs of one width, got {tuple(f_a.shape)} and {tuple(c.shape)}"
        )
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be a number above 0, got {tau!r}")
    terms = _terms(_cosines(f_a, c), tau).numpy()
    return Bound(terms, np.ones(len(terms)), numbered(groups, len(terms)), float(tau), math.log(len(terms)))


def held_out_bound(
    x: Vectors,
    c: Vectors,
    groups: Groups | None = None,
    *,
    critic: Literal["cosine", "linear"] = "cosine",
    seed: int = 0,
) -> Bound:
    """`infonce_bound` on one half of the sources, with a critic fitted to the other half.

    "cosine" fits tau only: the information within a cosine's reach, as retrieval needs it. "linear" also fits a linear
    map from x to c by ridge regression; its penalty and tau are chosen within the fitted half. It measures the
    information within a linear map's reach, wherever in the vector it is. Only "linear" compares raw and projected
    vectors fairly.

    Neither can show a permanent loss. A higher projected bound means that a linear map, or the pairs that it was
    fitted to, were not enough for the raw vectors; the projector has seen other pairs as well. With a lower projected
    bound, the projector may have bent information that a better critic could still read.

    Args:
        x: (n, d) floats, vectors of sounds, raw or projected; d = D for "cosine".
        c: (n, D) floats, CLS tokens.
        groups: (n,) sources; by default each clip is its own source.
        critic: "cosine" or "linear", see above.
        seed: random seed for the halves.

    Returns:
        The bound over the measured half, whose N sets the ceiling. It is about 0 if nothing is shared.

    Raises:
        ValueError: for other shapes, NaN, an unknown critic, or fewer than 4 sources.
    """
    x, c = matrix(x, "x"), matrix(c, "c")
    if len(x) != len(c) or (critic == "cosine" and x.shape != c.shape):
        raise ValueError(f"x and c must be pairs, row by row, got {tuple(x.shape)} and {tuple(c.shape)}")
    if critic not in ("cosine", "linear"):
        raise ValueError(f"the critic is cosine or linear, not {critic!r}")
    numbers = numbered(groups, len(x))
    if len(np.unique(numbers)) < 4:
        raise ValueError(
            f"{len(np.unique(numbers))} sources: 4 are needed, to fit a critic to one half and measure on the other"
        )
    fitted, measured = _halves(numbers, seed)
    if critic == "cosine":
        tau, _ = _best_tau(x[fitted], c[fitted])
        return infonce_bound(x[measured], c[measured], numbers[measured], tau=tau)
    first, second = (fitted[part] for part in _halves(numbers[fitted], seed))
    chosen = []
    for penalty in PENALTIES:
        tau, bound = _best_tau(*_mapped(x, c, first, second, penalty))
        chosen.append((bound, penalty, tau))
    _, penalty, tau = max(chosen)
    return infonce_bound(*_mapped(x, c, fitted, measured, penalty), numbers[measured], tau=tau)


def _halves(numbers: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    return split_by_source([str(number) for number in numbers.tolist()], 0.5, seed)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T


def _terms(cosines: Tensor, tau: float) -> Tensor:
    """The part of each pair in log N - L_NCE, (N,)."""
    logits = cosines / tau
    over = (logits.logsumexp(1) + logits.logsumexp(0)) / 2
    return math.log(len(logits)) + logits.diagonal() - over


def _best_tau(x: Tensor, c: Tensor) -> tuple[float, float]:
    """The temperature with the highest bound, and that bound."""
    cosines = _cosines(x, c)
    bounds = [_terms(cosines, tau).mean().item() for tau in TAUS]
    return TAUS[int(np.argmax(bounds))], max(bounds)


def _mapped(x: Tensor, c: Tensor, fitted: Tensor, rows: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Pictures predicted for some rows of x by a ridge regression on the fitted rows, and the real ones."""
    mean, deviation, middle = x[fitted].mean(0), x[fitted].std(0, correction=0), c[fitted].mean(0)
    scale = deviation.where(deviation > 0, 1.0)  # a constant column, such as padding
    known = (x[fitted] - mean) / scale
    gram = known.T @ known / len(known) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, known.T @ (c[fitted] - middle) / len(known))
    return (x[rows] - mean) / scale @ weights, c[rows] - middle


def cka(x: Vectors, c: Vectors, groups: Groups | None = None, *, seed: int = 0) -> Halved:
    """Linear CKA, a similarity of geometry, with the unbiased HSIC (Kornblith et al. 2019; HSIC_1, Song et al. 2012).

    HSIC(x, c) / sqrt(HSIC(x, x) HSIC(c, c)). It is 1 if distances in x equal those in c up to one scale. For independent
    sides it is 0 on average, so it may be negative. Rotating, shifting or scaling a side doesn't change it, and it needs
    no common axes. It can show that clips that sound alike look alike. Copies of a source raise it, so give one clip per
    source.

    It is not mutual information. The directions of largest variance decide it, it sees second moments only, and
    stretching x along an axis changes it but not I_shared.

    Args:
        x: (n, d) floats, vectors of sounds.
        c: (n, D) floats, CLS tokens.
        groups: (n,) sources, for the interval; by default each clip is its own source.
        seed: random seed for the interval.

    Returns:
        The figure with its interval.

    Raises:
        ValueError: for other shapes, NaN, rows of a side that are all alike, or if half of the sources may have fewer
            than 4 clips.
    """
    kernels = _kernels(x, c)

    def figure(rows: np.ndarray) -> float:
        return _cka(*(kernel[np.ix_(rows, rows)] for kernel in kernels))

    return halved(_cka(*kernels), numbered(groups, len(x)), figure, least=4, seed=seed)


def independence(
    x: Vectors, c: Vectors, groups: Groups | None = None, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """p of the unbiased HSIC: the share of random pairings that are as similar as the real pairs.

    One clip per source is drawn, 1,000 at most, since clips of one source are not exchangeable with others. A small p
    can show that sound and picture aren't independent; it doesn't say how much they share. A large p can't show that
    they are independent: a linear kernel sees only linear dependence.

    Args:
        x: (n, d) floats, vectors of sounds.
        c: (n, D) floats, CLS tokens.
        groups: (n,) sources; by default each clip is its own source.
        permutations: number of permutations; p is at least 1 / (permutations + 1).
        seed: random seed for draws and permutations.

    Returns:
        p, above 0 and at most 1.

    Raises:
        ValueError: for other shapes, NaN, fewer than 4 sources, or rows of a side that are all alike.
    """
    x, c = matrix(x, "x"), matrix(c, "c")
    numbers = numbered(groups, len(x))
    if len(x) != len(c):
        raise ValueError(f"x and c must be pairs, row by row, got {len(x)} and {len(c)} rows")
    rows = drawn_in_turn(numbers, min(PERMUTED, len(np.unique(numbers))), seed)
    first, second = (_centred(kernel) for kernel in _kernels(x[rows], c[rows]))
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(rows)) for _ in range(permutations))
    paired = np.vdot(first, second)
    # Sums that are equal up to rounding are tied, and count.
    level = paired - 1e-9 * math.sqrt(np.vdot(first, first) * np.vdot(second, second))
    as_high = sum(np.vdot(first, second[np.ix_(order, order)]) >= level for order in orders)
    return float((1 + as_high) / (1 + permutations))


def _kernels(x: Vectors, c: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' inner products, (n, n), centred and scaled so that they don't overflow."""
    if len(x) != len(c) or len(x) < 4:
        raise ValueError(f"expected at least 4 independent pairs, row by row, got {len(x)} and {len(c)} rows")
    kernels = []
    for name, side in (("x", x), ("c", c)):
        centred = around_mean(matrix(side, name), name)
        kernels.append((centred @ centred.T).numpy())
    return kernels[0], kernels[1]


def _cka(first: np.ndarray, second: np.ndarray) -> float:
    x, c = _centred(first), _centred(second)
    return float(np.vdot(x, c) / math.sqrt(np.vdot(x, x) * np.vdot(c, c)))


def _centred(kernel: np.ndarray) -> np.ndarray:
    """U-centre a kernel (Szekely & Rizzo 2014): two such matrices' products sum to n (n - 3) HSIC_1."""
    n = len(kernel)
    kernel = kernel.copy()
    np.fill_diagonal(kernel, 0)
    sums = kernel.sum(0)
    kernel += sums.sum() / ((n - 1) * (n - 2)) - (sums[:, None] + sums) / (n - 2)
    np.fill_diagonal(kernel, 0)
    return kernel
