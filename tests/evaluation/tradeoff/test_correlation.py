"""The trade-off against hand-made figures, other formulas and slow loops."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from llava_soundclip.evaluation.tradeoff import analyse, pareto_front

NAMES = ("whisperclip", "clap", "imagebind", "audioclip", "wav2clip")
GAIN = dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
LOSS = dict(zip(NAMES, (2.0, 1.0, 4.0, 3.0, 5.0), strict=True))


def test_five_points_by_hand():
    """Sums of squares 10 and 10, of products 8; residuals 3.6 with three degrees of freedom."""
    found = analyse(GAIN, LOSS)
    assert (found.pearson_r, found.slope, found.intercept) == pytest.approx((0.8, 0.8, 0.6))
    assert (found["pearson_r"], found["slope"], found["intercept"]) == pytest.approx((0.8, 0.8, 0.6))
    assert found.spearman_rho == pytest.approx(0.8)
    assert found.spearman_p == pytest.approx(16 / 120)  # the table of exact values has 0.067 on one side
    z, half = math.atanh(0.8), 1.959964 / math.sqrt(2)
    t, error = 3.182446, math.sqrt(3.6 / 3)
    intervals = {
        "pearson_r": (math.tanh(z - half), math.tanh(z + half)),
        "slope": (0.8 - t * error / math.sqrt(10), 0.8 + t * error / math.sqrt(10)),
        "intercept": (
            0.6 - t * error * math.sqrt(1 / 5 + 9 / 10),
            0.6 + t * error * math.sqrt(1 / 5 + 9 / 10),
        ),
    }
    for name, ends in intervals.items():
        each = found.intervals[name]
        assert (each.value, each.low, each.high) == pytest.approx((found[name], *ends), rel=1e-5)
        assert (each.n, each.level) == (5, 0.95)
    assert found.loss_per_point == pytest.approx(
        {"whisperclip": 2, "clap": 0.5, "imagebind": 4 / 3, "audioclip": 0.75, "wav2clip": 1}
    )


def test_what_the_docstring_says_of_an_r_of_089():
    """Five points with that r: a line and what is orthogonal to it."""
    x = np.array([-2, -1, 0, 1, 2]) / math.sqrt(10)
    across = np.array([1, -1, 0, -1, 1]) / 2.0
    y = 0.89 * x + math.sqrt(1 - 0.89**2) * across
    found = analyse(dict(zip("abcde", x, strict=True)), dict(zip("abcde", y, strict=True)))
    r = found.intervals["pearson_r"]
    assert r.value == pytest.approx(0.89)
    assert (round(r.low, 2), round(r.high, 2)) == (0.04, 0.99)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(4, 6), ties=st.booleans())
def test_against_other_formulas(seed, n, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4, (2, n)).astype(float) if ties else rng.normal(0, 1, (2, n))
    assume(np.ptp(x) and np.ptp(y))
    found = analyse(dict(zip("abcdef", x, strict=False)), dict(zip("abcdef", y, strict=False)))
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=1e-9)
    assert found.pearson_r == pytest.approx(np.corrcoef(x, y)[0, 1])
    if abs(found.pearson_r) < 0.9999:
        ends = stats.pearsonr(x, y).confidence_interval(0.95)
        r = found.intervals["pearson_r"]
        assert (r.low, r.high) == pytest.approx((ends.low, ends.high))
    ranks = stats.rankdata(x), stats.rankdata(y)
    rho = np.corrcoef(*ranks)[0, 1]
    orders = [np.corrcoef(ranks[0], order)[0, 1] for order in itertools.permutations(ranks[1])]
    assert found.spearman_rho == pytest.approx(rho)
    assert found.spearman_p == pytest.approx(np.mean(np.abs(orders) >= abs(rho) - 1e-9))
    for row, name in enumerate("abcdef"[:n]):
        others = np.delete(x, row), np.delete(y, row)
        left = found.leave_one_out[name]
        if np.ptp(others[0]):
            assert left["slope"] == pytest.approx(np.polyfit(*others, 1)[0], abs=1e-9)
        else:
            assert math.isnan(left["slope"])
        if np.ptp(others[0]) and np.ptp(others[1]):
            assert left["pearson_r"] == pytest.approx(np.corrcoef(*others)[0, 1])
        else:
            assert math.isnan(left["pearson_r"])


def test_one_encoder_can_make_the_line():
    gain = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.0, "far": 9.0}
    loss = {"a": 1.0, "b": 0.9, "c": 1.1, "d": 1.0, "far": 9.0}
    found = analyse(gain, loss)
    assert found.pearson_r > 0.99 and found.leave_one_out["far"]["pearson_r"] == pytest.approx(-1)
    (low, least), (_, most) = found.leave_one_out_range().items()
    assert low == "far" and least == pytest.approx(-1) and most > 0.99
    assert next(iter(found.leave_one_out_range("slope"))) == "far"
    assert "-1 without far" in str(found) and str(found.intervals["pearson_r"]) in str(found)


def test_the_order_of_the_encoders_means_nothing():
    assert analyse(dict(reversed(GAIN.items())), LOSS) == analyse(GAIN, dict(reversed(LOSS.items())))


def test_it_is_a_mapping_and_goes_to_json():
    found = analyse(GAIN, LOSS)
    assert {"pearson_r", "slope", "intercept", "spearman_rho", "loss_per_point"} <= set(found)
    assert len(found) == len(list(found)) and dict(found)["slope"] == found.slope
    with pytest.raises(KeyError):
        _ = found["as_dict"]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["intervals"]["slope"]["n"] == 5


def test_three_points_say_nothing_of_r_and_a_perfect_one_stays_perfect():
    three = analyse({"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 4, "c": 5}).intervals["pearson_r"]
    assert (three.low, three.high) == (-1, 1)
    perfect = analyse({"a": 1, "b": 2, "c": 3, "d": 5}, {"a": 2, "b": 4, "c": 6, "d": 10})
    r = perfect.intervals["pearson_r"]
    assert (r.low, r.value, r.high) == pytest.approx((1, 1, 1))
    without_gain = analyse({**GAIN, "clap": 0}, LOSS)
    assert math.isnan(without_gain.loss_per_point["clap"])
    assert json.loads(json.dumps(without_gain.as_dict(), allow_nan=False))["loss_per_point"]["clap"] is None


@pytest.mark.parametrize(
    ("gain", "loss", "message"),
    [
        (GAIN, {**LOSS, "whisper": 1}, r"different encoders: \['whisper'\]"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, "2 encoders says nothing"),
        ({}, {}, "0 encoders"),
        ({**GAIN, "clap": math.nan}, LOSS, "a gain is NaN or infinite"),
        (GAIN, {**LOSS, "clap": math.inf}, "a loss is NaN or infinite"),
        (dict.fromkeys(NAMES, 3), LOSS, "every gain is 3"),
        (GAIN, dict.fromkeys(NAMES, 0.1), "every loss is 0.1"),
    ],
)
def test_what_is_refused(gain, loss, message):
    with pytest.raises(ValueError, match=message):
        analyse(gain, loss)


places = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=12)


@given(places)
def test_the_front_is_what_nothing_beats(points):
    def beaten(point: tuple[int, int]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    front = pareto_front(dict(enumerate(points)))
    assert set(front) == {row for row, point in enumerate(points) if not beaten(point)}
    assert front == sorted(front, key=lambda row: (-points[row][0], points[row][1], row))


def test_the_front_by_hand():
    points = {
        "raw": (0.01, 1.9),
        "mix": (0.2, 1.5),
        "poor": (0.2, 1.4),
        "projected": (0.45, 1.5),
        "twin": (0.45, 1.5),
    }
    assert pareto_front(points) == ["projected", "twin", "raw"]
    assert pareto_front({}) == []
    with pytest.raises(ValueError, match="'mix' is at"):
        pareto_front({"raw": (0, 1), "mix": (math.nan, 1)})
