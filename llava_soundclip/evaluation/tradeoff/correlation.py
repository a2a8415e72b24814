"""The trade-off over encoders (4.4): the correlation of gain and loss, and the Pareto front.

A gain is in percentage points, projected minus raw. A loss is in percent of the raw figure, (raw - projected) / raw. It
is positive if raw is better.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from llava_soundclip._extras import require
from llava_soundclip.evaluation.intervals import LEVEL, Interval

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Tradeoff(Mapping[str, Any]):
    """The relation of loss and gain over encoders (Finding 6). Every attribute is also a key.

    Read the intervals. They assume that the encoders are a random sample of all encoders and that both figures are
    roughly normal; five encoders can't confirm either. With five, the interval of an r of 0.89 is 0.04 to 0.99. They
    ignore the measurement error of each figure, and say nothing about causes.

    Attributes:
        pearson_r: correlation of gain and loss.
        slope: percent lost per further point gained, by least squares.
        intercept: percent lost at a gain of 0, on the same line.
        spearman_rho: correlation of the ranks.
        spearman_p: share of all orders of the losses whose rho is at least as far from 0; exact up to seven encoders.
            With five it is at least 1/60.
        intervals: intervals of "pearson_r" (Fisher's z), "slope" and "intercept" (Student's t); n counts encoders.
        leave_one_out: "pearson_r" and "slope" without one encoder, by that encoder. NaN if all other gains (for r, also
            losses) are equal.
        loss_per_point: loss / gain by encoder; NaN at a gain of 0. With a negative gain it isn't a price.
    """

    pearson_r: float
    slope: float
    intercept: float
    spearman_rho: float
    spearman_p: float
    intervals: dict[str, Interval]
    leave_one_out: dict[str, dict[str, float]]
    loss_per_point: dict[str, float]

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))

    def leave_one_out_range(self, figure: str = "pearson_r") -> dict[str, float]:
        """The lowest and the highest figure of `leave_one_out`, by the encoder left out.

        Args:
            figure: "pearson_r" or "slope".
        """
        left = {
            name: found[figure] for name, found in self.leave_one_out.items() if not math.isnan(found[figure])
        }
        return {
            name: left[name] for name in (min(left, key=left.__getitem__), max(left, key=left.__getitem__))
        }

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON: NaN, which JSON lacks, becomes None."""
        return {
            **self,
            "intervals": {name: each.as_dict() for name, each in self.intervals.items()},
            "leave_one_out": {name: _without_nan(found) for name, found in self.leave_one_out.items()},
            "loss_per_point": _without_nan(self.loss_per_point),
        }

    def __str__(self) -> str:
        r, slope, intercept = (self.intervals[name] for name in ("pearson_r", "slope", "intercept"))
        left = ", ".join(f"{value:.3g} without {name}" for name, value in self.leave_one_out_range().items())
        costs = ", ".join(f"{name} {cost:.3g}" for name, cost in self.loss_per_point.items())
        return (
            f"r = {r}, n = {r.n}; {left}\n"
            f"loss = {slope} per point + {intercept}\n"
            f"Spearman's rho = {self.spearman_rho:.3g}, p = {self.spearman_p:.3g}\n"
            f"loss per point: {costs}"
        )


def analyse(gain: Mapping[str, float], loss: Mapping[str, float]) -> Tradeoff:
    """Finding 6: do encoders that gain more by projecting also lose more?

    Args:
        gain: retrieval gain in percentage points, by encoder.
        loss: quality lost in percent of raw, by encoder; positive if raw is better.

    Returns:
        The correlation, the line and their intervals. The order of the encoders doesn't matter.

    Raises:
        ValueError: if the two don't name the same encoders, there are fewer than three, a figure isn't finite, or all
            gains or all losses are equal.
        ImportError: if scipy isn't installed.
    """
    stats = require("scipy.stats", extra="evaluation")
    if gain.keys() != loss.keys():
        raise ValueError(
            f"gain and loss name different encoders: {sorted(gain.keys() ^ loss.keys())} in one only"
        )
    names = sorted(gain)
    if len(names) < 3:
        raise ValueError(f"a line through {len(names)} encoders says nothing: at least three are needed")
    x, y = (np.array([float(side[name]) for name in names]) for side in (gain, loss))
    for what, column in (("gain", x), ("loss", y)):
        if not np.isfinite(column).all():
            raise ValueError(f"a {what} is NaN or infinite: {dict(zip(names, column.tolist(), strict=True))}")
        if _is_level(column):
            raise ValueError(f"every {what} is {column[0]:g}: there is no correlation with it")
    n = len(names)
    line = stats.linregress(x, y)
    t = stats.t.ppf((1 + LEVEL) / 2, n - 2)
    intervals = {
        "pearson_r": Interval(float(line.rvalue), *_fisher(line.rvalue, n, stats), n),
        **{
            what: Interval(float(value), float(value - t * error), float(value + t * error), n)
            for what, value, error in (
                ("slope", line.slope, line.stderr),
                ("intercept", line.intercept, line.intercept_stderr),
            )
        },
    }
    rho, p = _spearman(x, y, stats)
    return Tradeoff(
        pearson_r=float(line.rvalue),
        slope=float(line.slope),
        intercept=float(line.intercept),
        spearman_rho=rho,
        spearman_p=p,
        intervals=intervals,
        leave_one_out={name: _without(row, x, y, stats) for row, name in enumerate(names)},
        loss_per_point={
            name: float(lost / gained) if gained else math.nan
            for name, gained, lost in zip(names, x, y, strict=True)
        },
    )


def _without_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _is_level(column: np.ndarray) -> bool:
    return bool((column == column[0]).all())


def _fisher(r: float, n: int, stats: Any) -> tuple[float, float]:
    """Interval of r: atanh(r) is nearly normal with variance 1 / (n - 3), so three points tell nothing."""
    if n == 3:
        return -1.0, 1.0
    half = stats.norm.ppf((1 + LEVEL) / 2) / math.sqrt(n - 3)
    with np.errstate(divide="ignore"):  # a perfect r becomes infinite, and tanh maps it back
        z = np.arctanh(r)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def _spearman(x: np.ndarray, y: np.ndarray, stats: Any) -> tuple[float, float]:
    # Doubled, centred ranks are whole numbers, so that equal distances from 0 compare exactly.
    first, second = (2 * stats.rankdata(column) - len(column) - 1 for column in (x, y))

    def distance(order: np.ndarray, axis: int) -> np.ndarray:
        return abs((first * order).sum(axis=axis))

    # All orders are tried if they are no more than the resamples: 7! is 5040.
    test = stats.permutation_test(
        (second,),
        distance,
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    rho = (first * second).sum() / math.sqrt((first**2).sum() * (second**2).sum())
    return float(rho), float(test.pvalue)


def _without(row: int, x: np.ndarray, y: np.ndarray, stats: Any) -> dict[str, float]:
    x, y = np.delete(x, row), np.delete(y, row)
    if _is_level(x):
        return {"pearson_r": math.nan, "slope": math.nan}
    line = stats.linregress(x, y)
    return {"pearson_r": math.nan if _is_level(y) else float(line.rvalue), "slope": float(line.slope)}


def pareto_front(points: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """The settings that no other setting beats in one figure without losing in the other (Finding 7).

    Of two settings tied in one figure, the one better in the other stays. Settings at the same point stay together, in
    the given order.

    Args:
        points: (retrieval, quality) by name; higher is better for both.

    Returns:
        Names, from the best retrieval to the best quality.

    Raises:
        ValueError: if a figure isn't finite.
    """
    for name, point in points.items():
        if not np.isfinite(point).all():
            raise ValueError(f"{name!r} is at {tuple(point)}: NaN and infinity can't be compared")
    front: list[Name] = []
    for name in sorted(points, key=lambda name: (-points[name][0], -points[name][1])):
        if (
            not front
            or points[name][1] > points[front[-1]][1]
            or tuple(points[name]) == tuple(points[front[-1]])
        ):
            front.append(name)
    return front
