"""Intervals: against the normal theory where it holds, and on clips that are all alike."""

import numpy as np
import pytest
from scipy import stats

from llava_soundclip.evaluation.intervals import Interval, bootstrap, difference, mean


def test_of_many_clips_it_is_the_normal_theorys():
    clips = np.random.default_rng(0).normal(3, 2, 1000)
    found = bootstrap(clips)
    low, high = stats.t.interval(0.95, len(clips) - 1, clips.mean(), stats.sem(clips))
    assert found.value == pytest.approx(clips.mean()) and found.n == 1000
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_it_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = [bootstrap(rng.exponential(1, 80), resamples=400, seed=seed) for seed in range(200)]
    assert 0.88 <= np.mean([draw.low <= 1 <= draw.high for draw in draws]) <= 0.99


def test_rows_are_drawn_together():
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 10, 300)  # of the clips, the same in both settings
    raw, projected = hardness + 1 + rng.normal(0, 0.1, 300), hardness
    found = difference(raw, projected)
    assert 0.97 < found.low < found.value < found.high < 1.03
    assert bootstrap(raw).high - bootstrap(raw).low > 1


def test_the_same_seed_gives_the_same_interval():
    clips = np.random.default_rng(3).random(50)
    assert bootstrap(clips, seed=4) == bootstrap(clips, seed=4) != bootstrap(clips, seed=5)


@pytest.mark.parametrize("clips", [[1.0], [0.0, 0.0, 0.0]])
def test_clips_that_are_alike_have_no_width(clips):
    assert bootstrap(clips) == Interval(clips[0], clips[0], clips[0], len(clips))


@pytest.mark.parametrize("hits", [0, 54])
def test_a_share_of_none_or_all_has_wilsons_interval(hits):
    found = mean([1.0] * hits + [0.0] * (54 - hits))
    wilson = stats.binomtest(hits, 54).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high)) and found.n == 54
    groups = np.arange(54) // 6
    wilson = stats.binomtest(hits // 6, 9).proportion_ci(method="wilson")
    found = mean([hits / 54] * 54, groups)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high)) and found.n == 9
    assert mean([0.3] * 5) == Interval(0.3, 0.3, 0.3, 5)


def test_clips_of_a_source_are_drawn_together():
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 40, 400)
    values = rng.normal(0, 1, 40)[groups] + rng.normal(0, 0.1, 400)
    found = mean(values, groups)
    assert found.value == pytest.approx(values.mean()) and found.n == len(set(groups))
    slow = []
    rows = [np.flatnonzero(groups == group) for group in set(groups)]
    for _ in range(2000):
        slow.append(values[np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=0.04)
    assert difference(values, values - 1, groups).value == pytest.approx(1)
    assert mean(values, np.arange(400)) == mean(values)
    with pytest.raises(ValueError, match="expected groups"):
        mean(values, groups[1:])


@pytest.mark.parametrize("columns", [(), ([],), ([[1.0]],), ([1.0, 2.0], [1.0]), ([1.0, float("nan")],)])
def test_what_is_refused(columns):
    with pytest.raises(ValueError):
        bootstrap(*columns)
