"""IGTMM (F.1) made measurable: what sound and picture share, what is the sound's own, and dimensions.

Shapes: a clip's sound h_a is z_a (n, d_a) raw and f_a (n, D) projected, its picture v is the CLS token c
(n, D); row by row a pair. groups (n,) name each row's source: clips of one film are no independent clips, so
that intervals resample whole sources, and what is fitted is measured on other sources.

F.1 splits I(h_a) into I_shared(h_a; v), the mutual information of sound and picture, and I_unique(h_a).
Neither can be read off vectors as it stands:

- I_shared is bounded from below here (`infonce_bound`, `held_out_bound`). f_a is a function of z_a, so that
  by the data processing inequality I(f_a; v) <= I(z_a; v): projecting can't add to it, as Proposition F.2 has
  it, but only bring into a cosine's reach what was there. A bound that grows by projecting shows that, and
  nothing more.
- I_unique has no estimator: the information of a continuous vector with itself is infinite. What can be
  measured is whether something named is still legible (`probe`), and whether the picture tells it as well.

There is no nearest-neighbour estimate of I (KSG): it needs clips in numbers exponential in I and in the
dimension, and on a few principal components it is the information of those, which are others before and after
projecting.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llava_soundclip._extras import require
from llava_soundclip.alignment import RawPad
from llava_soundclip.evaluation.intervals import Interval, bootstrap
from llava_soundclip.evaluation.vectors import aligned, fused, seen
from llava_soundclip.features.splits import split_by_source
from llava_soundclip.features.store import FeatureFolder
from llava_soundclip.projector import Projector

LIMIT = 2000  # clips at most: what compares all with all takes n^2 numbers
TAUS = tuple(np.geomspace(0.01, 10, 19).tolist())  # at 10 a critic says nothing, and its bound is 0
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of squared weights, a clip, on standardised columns
FOLDS = 5
GEOMETRY = 100  # clips at least, where there are fewer sources
HALVES = 100  # draws of half of the sources
PERMUTATIONS = 199
PERMUTED = 1000  # clips at most, each permutation compares all with all
KEPT = 0.9  # share of the ratios that TwoNN reads: Facco et al. discard the largest tenth
LOWEST = -120.0  # dB, less than float32 samples resolve

Vectors = Tensor | np.ndarray
Groups = Sequence[Hashable] | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure sum(gain) / sum(weight) over clips, whose sources can be resampled.

    Attributes:
        gain: (n,) each clip's part.
        weight: (n,) each clip's weight.
        groups: (n,) integers, each clip's source.
    """

    gain: np.ndarray
    weight: np.ndarray
    groups: np.ndarray

    def interval(self, *, seed: int = 0) -> Interval:
        """The figure, with its interval over sources, whose number is `n`. What was fitted isn't fitted anew.

        Raises:
            ImportError: if scipy isn't installed.
        """
        return self._over_sources(self.gain, seed)

    def minus(self, other: "Ratio", *, seed: int = 0) -> Interval:
        """How far the figure is above another one of the same clips, paired by source.

        Raises:
            ValueError: if the two aren't of the same clips.
            ImportError: if scipy isn't installed.
        """
        if not (np.array_equal(self.groups, other.groups) and np.array_equal(self.weight, other.weight)):
            raise ValueError("the two weren't measured on the same clips")
        return self._over_sources(self.gain - other.gain, seed)

    def _over_sources(self, gain: np.ndarray, seed: int) -> Interval:
        sums = (np.bincount(self.groups, column) for column in (gain, self.weight))
        present = np.bincount(self.groups) > 0
        return bootstrap(
            *(each[present] for each in sums),
            statistic=lambda gains, weights, axis: gains.sum(axis) / weights.sum(axis),
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class Bound(Ratio):
    """A lower bound of I_shared in nats, the mean of `gain`.

    Attributes:
        tau: the critic's temperature.
        at_most: log N, which the bound can't exceed however much is shared.
    """

    tau: float
    at_most: float

    def as_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """For JSON."""
        return {**self.interval(seed=seed).as_dict(), "at_most": self.at_most, "tau": self.tau}


def infonce_bound(f_a: Vectors, c: Vectors, groups: Groups | None = None, *, tau: float = 0.07) -> Bound:
    """I_shared >= log N - L_NCE, with the critic cos(f_a, c) / tau (van den Oord et al. 2018; L_NCE of F.4).

    It can show that at least so much is shared, and within reach of a cosine. It can't show that no more is:
    a low bound may be the critic's fault, as with raw vectors, whose axes have nothing to do with c's; and
    log N is its ceiling. It holds on average over independent pairs that neither the projector nor tau was
    fitted to: take clips kept aside. Clips of one source among the N are confused with each other and lower
    it.

    Args:
        f_a: (n, D) vectors of sounds.
        c: (n, D) CLS tokens.
        groups: (n,) sources, for the interval; by default each clip is its own.
        tau: the temperature, above 0; by default that of the training.

    Returns:
        The mean of both directions, each of which is a bound.

    Raises:
        ValueError: for other shapes, NaN, fewer than 2 pairs, or a tau that isn't above 0.
    """
    f_a, c = _matrix(f_a, "f_a"), _matrix(c, "c")
    if f_a.shape != c.shape or len(f_a) < 2:
        raise ValueError(
            f"expected 2 pairs or more of one width, got {tuple(f_a.shape)} and {tuple(c.shape)}"
        )
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be a number above 0, got {tau!r}")
    terms = _terms(_cosines(f_a, c), tau).numpy()
    return Bound(terms, np.ones(len(terms)), _numbers(groups, len(terms)), float(tau), math.log(len(terms)))


def held_out_bound(
    x: Vectors,
    c: Vectors,
    groups: Groups | None = None,
    *,
    critic: Literal["cosine", "linear"] = "cosine",
    seed: int = 0,
) -> Bound:
    """`infonce_bound` of one half of the sources, with a critic that is fitted to the other half.

    "cosine" fits tau alone: what is within a cosine's reach, as retrieval needs it. "linear" also fits a
    linear map of x to c by ridge regression, its penalty and tau chosen within the fitted half: what is
    within a linear map's reach, wherever in the vector it stands. Only the linear one is a fair comparison of
    raw and projected vectors. It can't show what is lost for good: where the projected bound is higher a
    linear map, or the pairs that it was fitted to, weren't enough for the raw vectors, since the projector
    has seen others as well; and where it is lower the projector may have bent what a better critic reads.

    Args:
        x: (n, d) vectors of sounds, raw or projected; d = D for "cosine".
        c: (n, D) CLS tokens.
        groups: (n,) sources; by default each clip is its own.
        critic: see above.
        seed: of the halves.

    Returns:
        The bound over the other half, whose N sets the ceiling. Without anything to read it is about 0.

    Raises:
        ValueError: for other shapes, NaN, an unknown critic, or fewer than 4 sources.
    """
    x, c = _matrix(x, "x"), _matrix(c, "c")
    if len(x) != len(c) or (critic == "cosine" and x.shape != c.shape):
        raise ValueError(f"x and c must be pairs, row by row, got {tuple(x.shape)} and {tuple(c.shape)}")
    if critic not in ("cosine", "linear"):
        raise ValueError(f"the critic is cosine or linear, not {critic!r}")
    numbers = _numbers(groups, len(x))
    if len(np.unique(numbers)) < 4:
        raise ValueError(
            f"{len(np.unique(numbers))} sources: 4 are needed, to fit a critic to some and measure on others"
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
    """Each pair's part of log N - L_NCE, (N,)."""
    logits = cosines / tau
    over = (logits.logsumexp(1) + logits.logsumexp(0)) / 2
    return math.log(len(logits)) + logits.diagonal() - over


def _best_tau(x: Tensor, c: Tensor) -> tuple[float, float]:
    """The temperature with the highest bound, and that bound."""
    cosines = _cosines(x, c)
    bounds = [_terms(cosines, tau).mean().item() for tau in TAUS]
    return TAUS[int(np.argmax(bounds))], max(bounds)


def _mapped(x: Tensor, c: Tensor, fitted: Tensor, rows: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Pictures that a ridge regression on the fitted rows sees in some rows of x, and the real ones."""
    mean, deviation, middle = x[fitted].mean(0), x[fitted].std(0, correction=0), c[fitted].mean(0)
    scale = deviation.where(deviation > 0, 1.0)  # a column of zeros, as padding has it
    known = (x[fitted] - mean) / scale
    gram = known.T @ known / len(known) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, known.T @ (c[fitted] - middle) / len(known))
    return (x[rows] - mean) / scale @ weights, c[rows] - middle


@dataclass(frozen=True)
class Halved:
    """A figure of a sample that can't be resampled with replacement: copies would be each other's neighbours.

    Attributes:
        interval: over sources, from halves of them drawn without replacement. Where a figure's variance falls
            with 1/n, that of the halves around the whole, s/(n/2) - s/n, is the whole's own, s/n.
        half: mean of the halves. Far from the interval's value, the figure depends on how many clips there
            are.
    """

    interval: Interval
    half: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.interval.as_dict(), "half": self.half}


def _halved(
    value: float, numbers: np.ndarray, figure: Callable[[np.ndarray], float], *, least: int, seed: int
) -> Halved:
    """`figure` of rows, over halves of the sources; it takes `least` of them."""
    sources, counts = np.unique(numbers, return_counts=True)
    size = (len(sources) + 1) // 2
    fewest = np.sort(counts)[:size].sum()
    if fewest < least:
        raise ValueError(f"half of the {len(sources)} sources may be {fewest} clips, and {least} are needed")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(sources)[:size] for _ in range(HALVES)]
    halves = np.array([figure(np.isin(numbers, half).nonzero()[0]) for half in drawn])
    low, high = value + np.quantile(halves - halves.mean(), (0.025, 0.975))
    return Halved(Interval(value, float(low), float(high), len(sources)), float(halves.mean()))


def cka(x: Vectors, c: Vectors, groups: Groups | None = None, *, seed: int = 0) -> Halved:
    """Linear CKA with the unbiased HSIC (Kornblith et al. 2019; HSIC_1 of Song et al. 2012): alike geometry.

    HSIC(x, c) / sqrt(HSIC(x, x) HSIC(c, c)). 1 where the distances in x are those in c but for one scale, 0
    on average where the two are independent, so that it may come out below; neither turning, shifting nor
    scaling a side changes it. It needs no common axes. It can show that clips that sound alike look alike.
    Copies of a source raise it, so give one clip of each. It is no mutual information: the directions of
    largest variance decide it, it sees second moments alone, and stretching x along an axis, which leaves
    I_shared as it is, changes it.

    Args:
        x: (n, d) vectors of sounds.
        c: (n, D) CLS tokens.
        groups: (n,) sources, for the interval; by default each clip is its own.
        seed: of the interval.

    Raises:
        ValueError: for other shapes, NaN, sources of which half may be fewer than 4 clips, or rows of a side
            that are all alike.
    """
    kernels = _kernels(x, c)

    def figure(rows: np.ndarray) -> float:
        return _cka(*(kernel[np.ix_(rows, rows)] for kernel in kernels))

    return _halved(_cka(*kernels), _numbers(groups, len(x)), figure, least=4, seed=seed)


def independence(
    x: Vectors, c: Vectors, groups: Groups | None = None, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """p of the unbiased HSIC: how often pairs at random are as much alike as the pairs are.

    Of every source one clip is drawn, 1,000 at most, since clips of one source can't be exchanged for others.
    A small p can show that sound and picture aren't independent; it doesn't say how much they share. A large
    one can't show that they are: a linear kernel sees linear dependence alone.

    Args:
        x: (n, d) vectors of sounds.
        c: (n, D) CLS tokens.
        groups: (n,) sources; by default each clip is its own.
        permutations: how many; p is 1 / (permutations + 1) at least.
        seed: of what is drawn and of the permutations.

    Raises:
        ValueError: for other shapes, NaN, fewer than 4 sources, or rows of a side that are all alike.
    """
    x, c = _matrix(x, "x"), _matrix(c, "c")
    numbers = _numbers(groups, len(x))
    if len(x) != len(c):
        raise ValueError(f"x and c must be pairs, row by row, got {len(x)} and {len(c)} rows")
    rows = _draw(numbers, min(PERMUTED, len(np.unique(numbers))), seed)
    first, second = (_centred(kernel) for kernel in _kernels(x[rows], c[rows]))
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(rows)) for _ in range(permutations))
    paired = np.vdot(first, second)
    # Sums that are equal but for rounding are level, and count.
    level = paired - 1e-9 * math.sqrt(np.vdot(first, first) * np.vdot(second, second))
    as_high = sum(np.vdot(first, second[np.ix_(order, order)]) >= level for order in orders)
    return float((1 + as_high) / (1 + permutations))


def _kernels(x: Vectors, c: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' inner products, (n, n), around the mean and of a scale that doesn't overflow."""
    if len(x) != len(c) or len(x) < 4:
        raise ValueError(f"expected 4 independent pairs or more, row by row, got {len(x)} and {len(c)} rows")
    kernels = []
    for name, side in (("x", x), ("c", c)):
        centred = _around_mean(_matrix(side, name), name)
        kernels.append((centred @ centred.T).numpy())
    return kernels[0], kernels[1]


def _cka(first: np.ndarray, second: np.ndarray) -> float:
    x, c = _centred(first), _centred(second)
    return float(np.vdot(x, c) / math.sqrt(np.vdot(x, x) * np.vdot(c, c)))


def _centred(kernel: np.ndarray) -> np.ndarray:
    """U-centred (Szekely & Rizzo 2014): of two such matrices the sum of products is n (n - 3) HSIC_1."""
    n = len(kernel)
    kernel = kernel.copy()
    np.fill_diagonal(kernel, 0)
    sums = kernel.sum(0)
    kernel += sums.sum() / ((n - 1) * (n - 2)) - (sums[:, None] + sums) / (n - 2)
    np.fill_diagonal(kernel, 0)
    return kernel


@dataclass(frozen=True, eq=False)
class Probe(Ratio):
    """How well a label is read off vectors.

    Attributes:
        measure: "balanced accuracy", the mean of the classes' recalls, or "R2", 1 - squared error / that of
            the mean.
        chance: what comes without any information: 1 / classes, or 0.
    """

    measure: str
    chance: float

    def as_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """For JSON."""
        return self.interval(seed=seed).as_dict()


def probe(vectors: Vectors, labels: Sequence[Any] | np.ndarray, groups: Groups | None = None) -> Probe:
    """How well a linear model reads a label off vectors of sources that it hasn't seen.

    Logistic regression for classes, ridge regression for numbers, each with whole sources held out in turn;
    the penalty is chosen within the others, or is the middle one where their sources are too few to. It can
    show that the vectors tell the label. It can't show that they don't: a linear model doesn't read what is
    bent. What `Probe.minus` finds lost by projecting is thus lost to a linear reader; and it belongs to
    I_unique only as far as the picture doesn't tell the label, which a probe of c says. Without any
    information scores are around chance, R2 a little below.

    Args:
        vectors: (n, d), raw or projected, or c.
        labels: (n,) floats are numbers; strings, booleans and integers are classes.
        groups: (n,) what is held out together, such as the source. By default each clip by itself: copies of
            one recording then tell on each other.

    Returns:
        The score over all clips, each predicted once. Of the same labels two can be subtracted, clip by clip.

    Raises:
        ValueError: for other shapes, NaN, labels that are all alike, or a class of a single group.
        ImportError: if scikit-learn isn't installed.
    """
    x = _matrix(vectors, "vectors").numpy()
    y = np.asarray(labels)
    is_number = y.dtype.kind == "f"
    if y.shape != (len(x),) or y.dtype.kind not in "fUiub":
        raise ValueError(f"expected ({len(x)},) numbers or classes, got {y.shape} of {y.dtype}")
    if is_number and not np.isfinite(y).all():
        raise ValueError("a label is NaN or infinite: leave its clip out")
    classes, which, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError("the labels are all alike: nothing can be read off")
    numbers = _numbers(groups, len(x))
    if not is_number:
        lone = [str(each) for each in classes if len(np.unique(numbers[y == each])) < 2]
        if lone:
            raise ValueError(
                f"a class must have clips in two groups, to learn from one; in one: {', '.join(lone[:5])}. "
                "Leave them out, or hold out smaller groups"
            )
    folds = _folds(y, numbers, is_number)
    if not folds:
        raise ValueError("all clips are in one group: a probe learns from some and is tried on others")
    weight = np.ones(len(y)) if is_number else 1 / counts[which]
    loss, base = np.empty(len(y)), weight.copy()
    for train, test in folds:
        penalty = _penalty(x[train], y[train], numbers[train], weight[train], is_number)
        model = _linear_model(penalty, len(train), is_number).fit(x[train], y[train])
        loss[test] = weight[test] * _errors(y[test], model.predict(x[test]), is_number)
        if is_number:
            base[test] = _errors(y[test], y[train].mean(), is_number)
    measure, chance = ("R2", 0.0) if is_number else ("balanced accuracy", 1 / len(classes))
    return Probe(base - loss, base, numbers, measure, chance)


def _folds(y: np.ndarray, numbers: np.ndarray, is_number: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to try, groups apart; none where a class would be left without either."""
    selection = require("sklearn.model_selection", extra="evaluation")
    parts = [numbers] if is_number else [numbers[y == each] for each in np.unique(y)]
    count = min(FOLDS, *(len(np.unique(part)) for part in parts))
    if count < 2 or (not is_number and len(parts) < 2):
        return []
    splitter = selection.GroupKFold(count) if is_number else selection.StratifiedGroupKFold(count)
    return list(splitter.split(y, y, numbers))


def _penalty(x: np.ndarray, y: np.ndarray, numbers: np.ndarray, weight: np.ndarray, is_number: bool) -> float:
    """The one that is best on one fold of these rows."""
    folds = _folds(y, numbers, is_number)
    if not folds:
        return PENALTIES[len(PENALTIES) // 2]
    train, test = folds[0]

    def loss(penalty: float) -> float:
        model = _linear_model(penalty, len(train), is_number).fit(x[train], y[train])
        return float((weight[test] * _errors(y[test], model.predict(x[test]), is_number)).sum())

    return min(PENALTIES, key=loss)


def _linear_model(penalty: float, n: int, is_number: bool) -> Any:
    linear = require("sklearn.linear_model", extra="evaluation")
    pipeline = require("sklearn.pipeline", extra="evaluation")
    preprocessing = require("sklearn.preprocessing", extra="evaluation")
    model = (
        linear.Ridge(alpha=penalty * n)
        if is_number
        else linear.LogisticRegression(C=1 / (penalty * n), class_weight="balanced", max_iter=1000)
    )
    return pipeline.make_pipeline(preprocessing.StandardScaler(), model)


def _errors(y: np.ndarray, predicted: np.ndarray, is_number: bool) -> np.ndarray:
    return (y - predicted) ** 2 if is_number else (y != predicted).astype(float)


def band_energy(waveform: np.ndarray, sampling_rate: float, *, low: float = 300, high: float = 3400) -> float:
    """How much of a sound's energy is in a band, as a label; by default the telephone's band of speech.

    Args:
        waveform: (samples,) or (channels, samples) floats.
        sampling_rate: in Hz.
        low: the band's lower end in Hz, inside.
        high: its upper end in Hz, inside.

    Returns:
        Decibels relative to the energy at all frequencies: 0 where all of it is inside, -120 at least. NaN
        for silence.

    Raises:
        ValueError: for another shape, no samples, NaN, or a band that isn't below half of the sampling rate.
    """
    waveform = np.asarray(waveform, dtype=np.float64)
    if waveform.ndim not in (1, 2) or not waveform.size or not np.isfinite(waveform).all():
        raise ValueError(f"expected finite (samples,) or (channels, samples), got {waveform.shape}")
    if not 0 <= low < high or not low < sampling_rate / 2:
        raise ValueError(f"there is no band from {low} to {high} Hz at a sampling rate of {sampling_rate} Hz")
    peak = abs(waveform).max()
    if not peak:
        return math.nan
    samples = waveform.shape[-1]
    energy = abs(np.fft.rfft(waveform / peak)) ** 2
    energy[..., 1 : (samples + 1) // 2] *= 2  # each but 0 Hz and half the rate also stands for its negative
    frequencies = np.fft.rfftfreq(samples, 1 / sampling_rate)
    share = energy[..., (frequencies >= low) & (frequencies <= high)].sum() / energy.sum()
    return float(max(LOWEST, 10 * math.log10(share))) if share else LOWEST


def intrinsic_dimension(x: Vectors, groups: Groups | None = None, *, seed: int = 0) -> dict[str, Halved]:
    """How many dimensions vectors fill: F.1 has sounds and pictures differ in it.

    A projector that can be undone, a diffeomorphism as in Theorem F.1, leaves the true dimension as it is. A
    lower one after projecting can show that what told clips apart at the distance of neighbours was
    flattened. Neither figure knows which dimensions they are, or whether they are of any use.

    Args:
        x: (n, d) vectors: raw, projected, or c.
        groups: (n,) sources, for the interval; by default each clip is its own. Where a source's clips are
            near copies, give one clip of each: copies are each other's neighbours, and how they differ is
            measured.
        seed: of the interval.

    Returns:
        "two_nn" and "participation_ratio", see there. `half` is TwoNN at the distances of half as many clips.

    Raises:
        ValueError: for other shapes, NaN, fewer than 20 distinct vectors, sources of which half may be fewer
            than 10 of them, or only ties.
    """
    distinct, rows = _distinct(x)
    numbers = _numbers(groups, len(x))[rows]
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
        name: _halved(value, numbers, figure, least=10, seed=seed)
        for name, (value, figure) in figures.items()
    }


def two_nn(x: Vectors) -> float:
    """Dimension from each vector's two nearest neighbours (TwoNN, Facco et al. 2017), by maximum likelihood.

    Where density hardly changes within that distance, mu = r2 / r1 has the distribution 1 - mu^-d. The
    largest tenth of the ratios, which they discard, counts only as being larger. It sees bent surfaces, too,
    but at one scale alone, that of neighbours: noise there is dimensions as well. Above ten or so it comes
    out low unless there are very many vectors.

    Args:
        x: (n, d); equal rows count once.

    Raises:
        ValueError: for other shapes, NaN, fewer than 20 distinct vectors, or only ties.
    """
    return _two_nn(_distances(_distinct(x)[0]))


def participation_ratio(x: Vectors) -> float:
    """Dimension of the cloud as a whole: (sum l)^2 / sum l^2 over the eigenvalues l of the covariance.

    d where d directions have one variance and the others none. It counts straight directions, thus a bent
    line as two or more, and those of large variance: stretching a column changes it. It is below n, and low
    where n isn't far above.

    Args:
        x: (n, d).

    Raises:
        ValueError: for other shapes, NaN, or rows that are all alike.
    """
    centred = _around_mean(_matrix(x, "x"), "x")
    scatter = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    return (scatter.trace() ** 2 / scatter.square().sum()).item()


def _distinct(x: Vectors) -> tuple[Tensor, np.ndarray]:
    """The distinct rows, and which they are."""
    values, rows = np.unique(_matrix(x, "x").numpy(), axis=0, return_index=True)
    if len(rows) < 20:
        raise ValueError(f"{len(rows)} distinct vectors are too few for a dimension: give 20 at least")
    return torch.from_numpy(values), rows


def _distances(distinct: Tensor) -> np.ndarray:
    # By products of matrices it is faster, but what is nearly equal would be at no distance.
    distances = torch.cdist(distinct, distinct, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(math.inf).numpy()


def _two_nn(distances: np.ndarray) -> float:
    nearest = np.partition(distances, 1, axis=1)[:, :2]
    logs = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    kept = int(KEPT * len(logs))
    # log(mu) is exponential with rate d: so many ended, the others were still waiting at the last one's end.
    total = logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1]
    if not total > 0:
        raise ValueError(
            "every vector is as far from its second neighbour as from its first: no dimension in that"
        )
    return float((kept - 1) / total)


@torch.no_grad()
def measure_information(
    folder: FeatureFolder,
    projector: Projector | None,
    rows: Tensor,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    apart: Literal["source", "clip"] = "source",
    limit: int = LIMIT,
    seed: int = 0,
) -> dict[str, Any]:
    """All of it for a features folder, raw and projected, with intervals over sources.

    Raw is z_a, with Whisper's blocks fused as the projector has it, so that what changes is the projecting
    alone; for the cosine it is padded or cut to the tower's width.

    Args:
        folder: of features.
        projector: None for raw alone.
        rows: (n,) integers: clips that the projector wasn't trained on.
        labels: by name, each clip's label by id, such as {"kind": {"clip-0": "dog", ...}}; see `probe` for
            their types. Clips without one, or with None or NaN, are left out.
        apart: what the probes hold out together. "clip" is for labels that are finer than sources.
        limit: clips at most, for each label and for the rest, drawn from sources in turn: the second clip of
            one comes after the first one of all.
        seed: of what is drawn.

    Returns:
        "shared": by "raw" and "projected" the bounds with both critics in nats, "cka", and "p" of
        `independence`; "gain", projected minus raw, of the bounds. "unique": by label the probes of "raw",
        "projected" and "picture", their "chance", and "lost", raw minus projected, paired. "dimension": of
        "raw", "projected" and "picture". The dimensions and "cka" are of one clip of each source, or of 100
        clips in turn where there are fewer sources. Beside it what was measured on what.

    Raises:
        ValueError: if the projector doesn't fit, there are too few sources, or a label fits no clip; it is
            named.
        ImportError: if scipy or, for labels, scikit-learn isn't installed.
    """
    if apart not in ("source", "clip"):
        raise ValueError(f"what is held out together is source or clip, not {apart!r}")
    ids = [folder.ids[row] for row in rows.tolist()]
    sources = _numbers([folder.sources[row] for row in rows.tolist()], len(rows))

    def vectors(drawn: Tensor) -> dict[str, Tensor]:
        projected = {} if projector is None else {"projected": aligned(folder, rows[drawn], projector)}
        z_a = fused(folder.rows(rows[drawn])[0], projector)
        return {"raw": z_a, **projected, "picture": seen(folder, rows[drawn])}

    drawn = _draw(sources, limit, seed)
    groups = sources[drawn]
    sides = vectors(drawn)
    c = sides["picture"]
    few = _draw(groups, max(GEOMETRY, len(np.unique(groups))), seed)
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
    unique = {}
    for label, values in (labels or {}).items():
        known = np.array([row for row, id in enumerate(ids) if not _is_missing(values.get(id))], dtype=int)
        if not len(known):
            raise ValueError(f"the label {label!r} has a value for none of the {len(ids)} clips")
        chosen = torch.from_numpy(known)[_draw(sources[known], limit, seed)]
        try:
            unique[label] = _probes(
                vectors(chosen),
                [values[ids[row]] for row in chosen.tolist()],
                sources[chosen] if apart == "source" else chosen.numpy(),
                seed,
            )
        except ValueError as error:
            raise ValueError(f"the label {label!r}: {error}") from error
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
        "dimension": dimension,
    }


def _bounds(x: Tensor, c: Tensor, groups: np.ndarray, seed: int) -> dict[str, Bound]:
    return {
        "cosine": held_out_bound(RawPad(c.shape[1])(x), c, groups, critic="cosine", seed=seed),
        "linear": held_out_bound(x, c, groups, critic="linear", seed=seed),
    }


def _probes(
    sides: Mapping[str, Tensor], labels: Sequence[Any], groups: np.ndarray, seed: int
) -> dict[str, Any]:
    found = {name: probe(x, labels, groups) for name, x in sides.items()}
    raw = found["raw"]
    result = {name: each.as_dict(seed=seed) for name, each in found.items()}
    if "projected" in found:
        result["lost"] = raw.minus(found["projected"], seed=seed).as_dict()
    return {"measure": raw.measure, "chance": raw.chance, "clips": len(labels), **result}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _draw(numbers: np.ndarray, limit: int, seed: int) -> Tensor:
    """Up to `limit` rows in ascending order, from all groups in turn."""
    order = np.random.default_rng(seed).permutation(len(numbers))
    by_group = order[np.argsort(numbers[order], kind="stable")]
    _, starts, counts = np.unique(numbers[by_group], return_index=True, return_counts=True)
    turn = np.empty(len(numbers), dtype=int)
    turn[by_group] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return torch.from_numpy(np.sort(order[np.argsort(turn[order], kind="stable")][:limit]))


def _numbers(groups: Groups | None, n: int) -> np.ndarray:
    """Groups by number, (n,)."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups must be ({n},), got {len(groups)}")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _matrix(x: Vectors, name: str) -> Tensor:
    """(n, d) float64."""
    matrix = torch.as_tensor(x).detach().cpu()
    if (
        matrix.ndim != 2
        or not matrix.is_floating_point()
        or not matrix.numel()
        or not matrix.isfinite().all()
    ):
        raise ValueError(f"{name} must be (n, d) finite floats, got {tuple(matrix.shape)} of {matrix.dtype}")
    return matrix.double()


def _around_mean(x: Tensor, name: str) -> Tensor:
    """Rows around their mean, of a root mean square of 1."""
    centred = x - x.mean(0)
    scale = centred.square().mean().sqrt()
    if not scale > 1e-12 * x.abs().max():
        raise ValueError(f"the rows of {name} are all alike")
    return centred / scale
