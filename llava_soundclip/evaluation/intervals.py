"""Figures with confidence intervals: the bootstrap over clips behind every figure of the evaluation.

Clips of one video or recording are not independent. Where sources are known, whole sources are drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llava_soundclip._extras import require
from llava_soundclip.evaluation.output import interval_text

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval: how much it would vary with other clips.

    Attributes:
        value: the figure for the given clips.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of clips, or of sources if whole sources were drawn.
        level: confidence level, 0.95.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def as_dict(self) -> dict[str, float]:
        """The fields as a dict, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return interval_text(self.as_dict())


def bootstrap(
    *columns: Sequence[float] | np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap over clips, by `scipy.stats.bootstrap`.

    Args:
        columns: (n,) numbers, one per clip; rows of several columns are drawn together, such as raw and projected.
        statistic: function of one array (..., n) per column, and `axis=`; the mean by default.
        level: confidence level of the interval.
        resamples: number of resamples.
        seed: random seed for the resamples.

    Returns:
        The interval. Its width is 0 for a single clip, or for clips that are all alike.

    Raises:
        ValueError: if there are no clips, columns differ in length, or a number isn't finite.
        ImportError: if scipy isn't installed.
    """
    scipy_stats = require("scipy.stats", extra="evaluation")
    data = [np.asarray(column, dtype=np.float64) for column in columns]
    if (
        not data
        or data[0].ndim != 1
        or any(column.shape != data[0].shape for column in data)
        or not data[0].size
    ):
        raise ValueError(f"expected columns of one length (n,), got {[column.shape for column in data]}")
    if not all(np.isfinite(column).all() for column in data):
        raise ValueError("the figure of a clip is NaN or infinite")
    value = float(statistic(*data, axis=-1))
    if all((column == column[0]).all() for column in data):
        return Interval(value, value, value, len(data[0]), level)
    found = scipy_stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**22 // len(data[0])),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), len(data[0]), level)


def mean(
    values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> Interval:
    """The mean over clips, with its interval.

    A share of clips that is 0 or 1 gets Wilson's interval. Resampling clips that are all alike would give an interval
    of width 0, as if no other clip could differ.

    Args:
        values: (n,) figures, one per clip.
        groups: (n,) integers, the source of each clip; None if each clip is its own source.
        seed: random seed for the resamples.

    Raises:
        ValueError, ImportError: as for `bootstrap`.
    """
    found = _mean(np.asarray(values, dtype=np.float64), groups, seed)
    if found.low < found.high or found.value not in (0, 1):
        return found
    z = require("scipy.stats", extra="evaluation").norm.ppf((1 + found.level) / 2)
    reach = z * z / (found.n + z * z)
    low, high = (0.0, reach) if found.value == 0 else (1 - reach, 1.0)
    return Interval(found.value, float(low), float(high), found.n, found.level)


def difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The mean of `first - second`, with its interval. It is paired by clip, so that hard clips don't widen it.

    Args:
        first: (n,) figures, one per clip, in one setting.
        second: (n,) figures of the same clips in the same order, in the other setting.
        groups: as for `mean`.
        seed: random seed for the resamples.

    Raises:
        ValueError, ImportError: as for `bootstrap`.
    """
    return _mean(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), groups, seed)


def sums_by(groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum rows (n, ...) over each group of (n,) integers, 0 or more, in ascending order: (groups, ...)."""
    sums = np.zeros((groups.max(initial=-1) + 1, *rows.shape[1:]))
    np.add.at(sums, groups, rows)
    return sums[np.bincount(groups) > 0]


def _mean(values: np.ndarray, groups: np.ndarray | None, seed: int) -> Interval:
    if groups is None:
        return bootstrap(values, seed=seed)
    if groups.shape != values.shape:
        raise ValueError(f"expected groups {values.shape}, got {groups.shape}")
    return bootstrap(
        sums_by(groups, values),
        sums_by(groups, np.ones_like(values)),
        statistic=lambda total, count, axis: total.sum(axis) / count.sum(axis),
        seed=seed,
    )
