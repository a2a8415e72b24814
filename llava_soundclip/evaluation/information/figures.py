"""Figures with intervals over sources: by the bootstrap for sums over clips, by halves for all others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_soundclip.evaluation.intervals import Interval, bootstrap

HALVES = 100  # draws of half of the sources


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure sum(gain) / sum(weight) over clips, whose sources can be resampled.

    Attributes:
        gain: (n,) float64, the part of each clip.
        weight: (n,) float64, the weight of each clip.
        groups: (n,) integers, the source of each clip.
    """

    gain: np.ndarray
    weight: np.ndarray
    groups: np.ndarray

    def interval(self, *, seed: int = 0) -> Interval:
        """The figure with its interval over sources; `n` is their number. Fitted models aren't refitted.

        Raises:
            ImportError: if scipy isn't installed.
        """
        return self._over_sources(self.gain, seed)

    def minus(self, other: "Ratio", *, seed: int = 0) -> Interval:
        """This figure minus another one of the same clips, paired by source.

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


@dataclass(frozen=True)
class Halved:
    """A figure of a sample that can't be resampled with replacement: copies would be each other's neighbours.

    Attributes:
        interval: interval over sources, from halves of them drawn without replacement. If a figure's variance falls
            with 1/n, the variance of the halves around the whole, s/(n/2) - s/n, equals the whole's own, s/n.
        half: mean over the halves. If it is far from the interval's value, the figure depends on the number of clips.
    """

    interval: Interval
    half: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return {**self.interval.as_dict(), "half": self.half}


def halved(
    value: float, numbers: np.ndarray, figure: Callable[[np.ndarray], float], *, least: int, seed: int
) -> Halved:
    """A figure with its interval from halves of the sources.

    Args:
        value: the figure of all rows.
        numbers: (n,) integers, the source of each row.
        figure: function that computes the figure of some rows, given their numbers.
        least: minimum number of rows that `figure` needs.
        seed: random seed for the halves.

    Raises:
        ValueError: if half of the sources may have fewer rows.
    """
    sources, counts = np.unique(numbers, return_counts=True)
    size = (len(sources) + 1) // 2
    fewest = np.sort(counts)[:size].sum()
    if fewest < least:
        raise ValueError(
            f"half of the {len(sources)} sources may have {fewest} clips, and {least} are needed"
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(sources)[:size] for _ in range(HALVES)]
    halves = np.array([figure(np.isin(numbers, half).nonzero()[0]) for half in drawn])
    low, high = value + np.quantile(halves - halves.mean(), (0.025, 0.975))
    return Halved(Interval(value, float(low), float(high), len(sources)), float(halves.mean()))
