"""Figures of the judge's answers, with intervals."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from llava_soundclip.evaluation.intervals import Interval, bootstrap, difference
from llava_soundclip.evaluation.judge.answers import FAILED, Answer
from llava_soundclip.evaluation.judge.prompt import DIMENSIONS


@dataclass(frozen=True)
class Usage:
    """Requests and tokens: an estimate, or the server's counts.

    Attributes:
        requests: number of requests, estimated or answered.
        prompt_tokens: number of tokens that the judge reads.
        completion_tokens: number of tokens that the judge writes.
        cost: cost in the currency of the prices, without discounts such as for cached tokens; None without prices.
        unreported: number of answered requests without reported tokens, which tokens and cost leave out.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = None
    unreported: int = 0

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:.2f}"
        lacking = f" (without {self.unreported} requests)" if self.unreported else ""
        tokens = f"{self.prompt_tokens:,} tokens in and {self.completion_tokens:,} out"
        return f"{self.requests:,} requests, {tokens}{cost}{lacking}"


@dataclass(frozen=True)
class Consistency:
    """Agreement of the judge with itself on captions that it scored twice.

    Attributes:
        equal: share of equal scores.
        difference: mean absolute difference of the scores.
        kappa: Cohen's kappa with quadratic weights; None if all scores are the same number, where it is undefined.
    """

    equal: Interval
    difference: Interval
    kappa: float | None

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """The judge's figures.

    Attributes:
        judge: model, host, hash of the prompt, temperature, seed and versions.
        scores: mean over the scored clips, by setting and dimension. "usefulness" is called overall in the paper's
            tables. A setting without scored captions has no dimensions.
        differences: mean of first minus second over clips scored in both, by pair of settings and dimension.
        consistency: consistency by dimension; empty if no caption was scored twice.
        counts: number of captions by setting and outcome, without repeats.
        failures: reason for each caption or repeat without an answer, by clip and setting.
        usage: usage for all answers in the file, including those of earlier runs.
    """

    judge: dict[str, Any]
    scores: dict[str, dict[str, Interval]]
    differences: dict[tuple[str, str], dict[str, Interval]]
    consistency: dict[str, Consistency]
    counts: dict[str, dict[str, int]]
    failures: dict[tuple[str, str], str]
    usage: Usage

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON; differences have names such as "raw - projected"."""
        return {
            "judge": self.judge,
            "scores": {setting: _plain(found) for setting, found in self.scores.items()},
            "differences": {
                f"{first} - {second}": _plain(found) for (first, second), found in self.differences.items()
            },
            "consistency": _plain(self.consistency),
            "counts": self.counts,
            "usage": asdict(self.usage),
        }


def judgement(
    asked: Sequence[Answer], settings: Iterable[str], judge: dict[str, Any], usage: Usage, *, seed: int
) -> Judgement:
    """Compute the figures of answers.

    Args:
        asked: the answer to each question.
        settings: settings in the order of comparison.
        judge: see `Judgement`.
        usage: see `Judgement`.
        seed: random seed for the bootstrap.
    """
    firsts = {(answer.setting, answer.id): answer for answer in asked if not answer.repeat}
    by_setting: dict[str, dict[str, dict[str, int]]] = {setting: {} for setting in settings}
    counts: dict[str, Counter[str]] = {setting: Counter() for setting in by_setting}
    for (setting, id), answer in firsts.items():
        counts[setting][answer.outcome] += 1
        if answer.scores:
            by_setting[setting][id] = answer.scores
    differences = {}
    for first, second in combinations(by_setting, 2):
        both = [id for id in by_setting[first] if id in by_setting[second]]
        if both:
            differences[first, second] = {
                name: difference(
                    [by_setting[first][id][name] for id in both],
                    [by_setting[second][id][name] for id in both],
                    seed=seed,
                )
                for name in DIMENSIONS
            }
    twice = [
        (before, answer.scores)
        for answer in asked
        if answer.repeat and answer.scores and (before := firsts[answer.setting, answer.id].scores)
    ]
    return Judgement(
        judge=judge,
        scores={
            setting: {
                name: bootstrap([scores[name] for scores in found.values()], seed=seed)
                for name in DIMENSIONS
                if found
            }
            for setting, found in by_setting.items()
        },
        differences=differences,
        consistency={
            name: _consistency([(a[name], b[name]) for a, b in twice], seed) for name in DIMENSIONS if twice
        },
        counts={setting: dict(counter) for setting, counter in counts.items()},
        failures={(answer.id, answer.setting): answer.text for answer in asked if answer.outcome == FAILED},
        usage=usage,
    )


def _consistency(pairs: Sequence[tuple[int, int]], seed: int) -> Consistency:
    first, second = np.array(pairs, dtype=np.float64).T
    by_chance = (
        first.var() + second.var() + (first.mean() - second.mean()) ** 2
    )  # expected for two independent scores
    return Consistency(
        equal=bootstrap(first == second, seed=seed),
        difference=bootstrap(np.abs(first - second), seed=seed),
        kappa=float(1 - ((first - second) ** 2).mean() / by_chance) if by_chance else None,
    )


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figure.as_dict() for name, figure in found.items()}
