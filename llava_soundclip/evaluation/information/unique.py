"""Information of the sound alone: a probe that reads labels off vectors, and a label computed from the waveform."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_soundclip._extras import require
from llava_soundclip.evaluation.information.common import PENALTIES, Groups, Vectors, matrix, numbered
from llava_soundclip.evaluation.information.figures import Ratio

FOLDS = 5
LOWEST = -120.0  # dB, below the resolution of float32 samples


@dataclass(frozen=True, eq=False)
class Probe(Ratio):
    """How well a label can be read off vectors.

    Attributes:
        measure: "balanced accuracy", the mean of the classes' recalls, or "R2", 1 - squared error / squared error of
            the mean.
        chance: the score without any information: 1 / classes, or 0.
    """

    measure: str
    chance: float

    def as_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """The interval's fields with `measure` and `chance`, for JSON."""
        return self.interval(seed=seed).as_dict()


def probe(vectors: Vectors, labels: Sequence[Any] | np.ndarray, groups: Groups | None = None) -> Probe:
    """How well a linear model reads a label off vectors of sources that it hasn't seen.

    It uses logistic regression for classes and ridge regression for numbers, with whole sources held out in turn. The
    penalty is chosen within the other sources, or is the middle one if they are too few. A score can show that the
    vectors tell the label. It can't show that they don't: a linear model reads only linear structure.

    A loss by projecting, as `Probe.minus` measures it, is thus a loss to a linear reader. It belongs to I_unique only as
    far as the picture doesn't tell the label, which a probe of c shows. Without any information scores are around
    chance, R2 a little below.

    Args:
        vectors: (n, d) floats, raw or projected, or c.
        labels: (n,) labels. Floats are numbers; strings, booleans and integers are classes.
        groups: (n,) the unit that is held out together, such as the source. By default each clip is its own: copies of
            one recording then leak the label to each other.

    Returns:
        The score over all clips, each predicted once. Two scores of the same labels can be subtracted, clip by clip.

    Raises:
        ValueError: for other shapes, NaN, labels that are all alike, or a class that occurs in one group only.
        ImportError: if scikit-learn isn't installed.
    """
    x = matrix(vectors, "vectors").numpy()
    y = np.asarray(labels)
    is_number = y.dtype.kind == "f"
    if y.shape != (len(x),) or y.dtype.kind not in "fUiub":
        raise ValueError(f"expected ({len(x)},) numbers or classes, got {y.shape} of {y.dtype}")
    if is_number and not np.isfinite(y).all():
        raise ValueError("a label is NaN or infinite: leave its clip out")
    classes, which, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError("the labels are all alike: nothing can be read off")
    numbers = numbered(groups, len(x))
    if not is_number:
        lone = [str(each) for each in classes if len(np.unique(numbers[y == each])) < 2]
        if lone:
            raise ValueError(
                f"a class must have clips in two groups, to learn from one of them; these have one: "
                f"{', '.join(lone[:5])}. Leave them out, or hold out smaller groups"
            )
    folds = _folds(y, numbers, is_number)
    if not folds:
        raise ValueError(
            "all clips are in one group: a probe needs some to learn from and others to be tested on"
        )
    weight = np.ones(len(y)) if is_number else 1 / counts[which]
    loss, base = np.empty(len(y)), weight.copy()
    for train, test in folds:
        penalty = _penalty(x[train], y[train], numbers[train], weight[train], is_number)
        model = _fitted(x[train], y[train], penalty, is_number)
        loss[test] = weight[test] * _errors(y[test], model.predict(x[test]), is_number)
        if is_number:
            base[test] = _errors(y[test], y[train].mean(), is_number)
    measure, chance = ("R2", 0.0) if is_number else ("balanced accuracy", 1 / len(classes))
    return Probe(base - loss, base, numbers, measure, chance)


def _folds(y: np.ndarray, numbers: np.ndarray, is_number: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows with disjoint groups; none if a class would be missing from either."""
    selection = require("sklearn.model_selection", extra="evaluation")
    parts = [numbers] if is_number else [numbers[y == each] for each in np.unique(y)]
    count = min(FOLDS, *(len(np.unique(part)) for part in parts))
    if count < 2 or (not is_number and len(parts) < 2):
        return []
    splitter = selection.GroupKFold(count) if is_number else selection.StratifiedGroupKFold(count)
    return list(splitter.split(y, y, numbers))


def _penalty(x: np.ndarray, y: np.ndarray, numbers: np.ndarray, weight: np.ndarray, is_number: bool) -> float:
    """The penalty that is best on one fold of these rows."""
    folds = _folds(y, numbers, is_number)
    if not folds:
        return PENALTIES[len(PENALTIES) // 2]
    train, test = folds[0]

    def loss(penalty: float) -> float:
        model = _fitted(x[train], y[train], penalty, is_number)
        return float((weight[test] * _errors(y[test], model.predict(x[test]), is_number)).sum())

    return min(PENALTIES, key=loss)


def _fitted(x: np.ndarray, y: np.ndarray, penalty: float, is_number: bool) -> Any:
    linear = require("sklearn.linear_model", extra="evaluation")
    pipeline = require("sklearn.pipeline", extra="evaluation")
    preprocessing = require("sklearn.preprocessing", extra="evaluation")
    model = (
        linear.Ridge(alpha=penalty * len(y))
        if is_number
        else linear.LogisticRegression(C=1 / (penalty * len(y)), class_weight="balanced", max_iter=1000)
    )
    with warnings.catch_warnings():
        # A label may have rare classes; the figure's chance reflects their number.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        return pipeline.make_pipeline(preprocessing.StandardScaler(), model).fit(x, y)


def _errors(y: np.ndarray, predicted: np.ndarray, is_number: bool) -> np.ndarray:
    return (y - predicted) ** 2 if is_number else (y != predicted).astype(float)


def band_energy(waveform: np.ndarray, sampling_rate: float, *, low: float = 300, high: float = 3400) -> float:
    """Share of a sound's energy in a frequency band, as a label; by default the telephone band of speech.

    Args:
        waveform: (samples,) or (channels, samples) floats.
        sampling_rate: sampling rate in Hz.
        low: lower end of the band in Hz, inclusive.
        high: upper end of the band in Hz, inclusive.

    Returns:
        Decibels relative to the energy at all frequencies: 0 if all of it is in the band, -120 at least. NaN for
        silence.

    Raises:
        ValueError: for another shape, no samples, NaN, or a band that isn't within half of the sampling rate.
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
    energy[..., 1 : (samples + 1) // 2] *= (
        2  # each also stands for its negative frequency, except 0 Hz and half the rate
    )
    frequencies = np.fft.rfftfreq(samples, 1 / sampling_rate)
    share = energy[..., (frequencies >= low) & (frequencies <= high)].sum() / energy.sum()
    return float(max(LOWEST, 10 * math.log10(share))) if share else LOWEST
