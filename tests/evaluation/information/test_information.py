"""Shared and unique information and dimensions, where the answer is known, and against slow loops."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip import Projector
from llava_soundclip.evaluation.information import (
    band_energy,
    cka,
    held_out_bound,
    independence,
    infonce_bound,
    intrinsic_dimension,
    measure_information,
    participation_ratio,
    probe,
    two_nn,
)
from llava_soundclip.evaluation.information.common import drawn_in_turn
from llava_soundclip.evaluation.vectors import aligned, seen
from llava_soundclip.features import FeatureFolder
from llava_soundclip.training.losses import make_loss
from tests.training.making import AUDIO, WIDTH, write_features


def gaussians(n, d, rho, seed=0):
    """Pairs whose mutual information is -d/2 log(1 - rho^2)."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def truth(d, rho):
    return -d / 2 * math.log(1 - rho**2)


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


# Shared information


@pytest.mark.parametrize("critic", ["cosine", "linear"])
def test_the_bound_is_below_the_truth_and_grows_with_it(critic):
    values = []
    for rho in (0.0, 0.5, 0.8, 0.95):
        bound = held_out_bound(*gaussians(600, 6, rho), critic=critic)
        interval = bound.interval()
        assert interval.low <= truth(6, rho) + 0.02 and interval.n == 300
        assert interval.value < bound.at_most == math.log(300)
        values.append(interval.value)
    assert values[0] == pytest.approx(0, abs=0.05)
    assert values == sorted(values) and values[2] > truth(6, 0.8) / 2


def test_the_bound_never_exceeds_log_n():
    x = gaussians(40, 30, 0)[0]
    value = infonce_bound(x, x, tau=0.01).interval().value
    assert value <= math.log(40) and value == pytest.approx(math.log(40), abs=1e-6)


@given(n=st.integers(2, 12), d=st.integers(1, 5), tau=st.floats(0.05, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_bound_is_log_n_minus_the_loss_of_f4(n, d, tau, seed):
    f_a, c = (torch.from_numpy(x) for x in gaussians(n, d, 0.5, seed))
    bound = infonce_bound(f_a, c, tau=tau)
    loss = make_loss("infonce", tau=tau)(f_a, c)["loss"].item()
    assert bound.gain.mean() == pytest.approx(math.log(n) - loss, abs=1e-9)


def test_a_linear_critic_reads_what_a_cosine_does_not_and_no_more_than_is_there():
    x, c = gaussians(600, 8, 0.95)
    turned = x @ rotation(8)[:, rotation(8, 1)[0].argsort()] * 3 + 5
    cosine = held_out_bound(turned, c).interval()
    linear = held_out_bound(turned, c, critic="linear")
    assert abs(cosine.value) < 0.1
    assert linear.interval().value > held_out_bound(x, c).interval().value - 0.1
    fewer = held_out_bound(turned[:, :3], c, critic="linear")
    assert linear.minus(fewer).low > 0.5  # dropping columns is projecting: it can only lose


def test_a_critic_with_more_weights_than_clips_finds_nothing_in_noise():
    x, c = gaussians(120, 200, 0)
    for critic in ("cosine", "linear"):
        assert abs(held_out_bound(x, c, critic=critic).interval().value) < 0.1


def test_clips_of_a_source_stay_together():
    """Each source has vectors of its own for sound and picture: knowing one tells nothing of another."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 6)
    x, c = (rng.normal(size=(30, 40))[groups] + 0.1 * rng.normal(size=(180, 40)) for _ in range(2))
    assert held_out_bound(x, c, critic="linear").interval().value > 1
    apart = held_out_bound(x, c, [f"film {group}" for group in groups], critic="linear")
    assert apart.interval().value < 0.2
    assert apart.interval().n == 15


def test_differences_need_the_same_clips():
    x, c = gaussians(20, 3, 0.5)
    with pytest.raises(ValueError, match="same clips"):
        infonce_bound(x, c, tau=1).minus(infonce_bound(x[:10], c[:10], tau=1))


# CKA


def slow_hsic(x, c):
    """HSIC_1 of Song et al. from its definition, over all quadruples of different rows."""
    k, m = x @ x.T, c @ c.T
    n, total = len(x), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / math.perm(n, 4)


def slow_cka(x, c):
    return slow_hsic(x, c) / math.sqrt(slow_hsic(x, x) * slow_hsic(c, c))


@given(d=st.integers(1, 4), rho=st.floats(0, 0.9), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_cka_is_the_slow_one_whatever_is_turned_shifted_or_scaled(d, rho, seed):
    x, c = gaussians(8, d, rho, seed)
    expected = slow_cka(x, c)
    assert cka(x, c).interval.value == pytest.approx(expected, abs=1e-9)
    turned = 1e-4 * x @ rotation(d, seed) + 7
    assert cka(turned, 1e5 * c).interval.value == pytest.approx(expected, abs=1e-6)
    wider = np.pad(c, ((0, 0), (0, 3)))
    assert cka(wider, x).interval.value == pytest.approx(expected, abs=1e-9)


def test_cka_of_copies_is_one_and_of_independent_vectors_zero():
    x, _ = gaussians(50, 6, 0)
    assert cka(x, -2 * x @ rotation(6)).interval.value == pytest.approx(1)
    found = [cka(*gaussians(12, 40, 0, seed)).interval.value for seed in range(15)]
    # The biased estimate is 0.78 here, with more columns than rows.
    assert np.mean(found) == pytest.approx(0, abs=0.05) and min(found) < 0


def test_p_is_uniform_where_nothing_is_shared():
    found = np.array(
        [independence(*gaussians(14, 3, 0, seed), permutations=19, seed=seed) for seed in range(80)]
    )
    assert 0.4 < found.mean() < 0.65  # the mean of 1/20, 2/20, ..., 1 is 0.525
    assert 0.02 < (found <= 0.1).mean() < 0.2 and found.min() >= 1 / 20
    assert independence(*gaussians(40, 3, 0.9), permutations=99) == 1 / 100


def test_copies_of_a_source_do_not_make_p_small():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(10), 8)
    x, c = (rng.normal(size=(10, 3))[groups] + 0.01 * rng.normal(size=(80, 3)) for _ in range(2))
    assert independence(x, c) < 0.02
    assert independence(x, c, groups) > 0.1


# Unique information


def test_a_probe_finds_what_is_linearly_there_and_a_projection_loses_just_that():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 6))
    groups = np.repeat(np.arange(60), 4)
    kind = np.where(x[:, 0] > 0, "dog", "cat")
    loudness = 3 * x[:, 1] - 40 + 0.1 * rng.normal(size=240)
    noise = rng.normal(size=240)
    axes = rotation(6)
    without = np.eye(6)
    without[0, 0] = 0
    raw, projected = x @ axes, x @ without @ axes
    found = {
        name: [probe(vectors, label, groups) for vectors in (raw, projected)]
        for name, label in (("kind", kind), ("loudness", loudness), ("noise", noise))
    }
    assert [each.measure for each, _ in found.values()] == ["balanced accuracy", "R2", "R2"]
    assert [each.chance for each, _ in found.values()] == [0.5, 0, 0]
    assert found["kind"][0].interval().value > 0.9 and found["loudness"][0].interval().value > 0.95
    assert found["kind"][1].interval().value == pytest.approx(0.5, abs=0.1)
    assert found["kind"][0].minus(found["kind"][1]).low > 0.25
    assert found["loudness"][0].minus(found["loudness"][1]).value == pytest.approx(0, abs=0.01)
    assert abs(found["noise"][0].interval().value) < 0.1


@pytest.mark.parametrize("is_number", [False, True])
def test_a_group_that_tells_its_label_is_not_recognised(is_number):
    """Every group has a place and a label of its own: only who has seen the group knows."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 5)
    x = rng.normal(size=(40, 60))[groups] + 0.05 * rng.normal(size=(200, 60))
    labels = rng.normal(size=40)[groups] if is_number else rng.integers(0, 2, 40)[groups]
    leaking, apart = probe(x, labels), probe(x, labels, groups)
    assert leaking.interval().value > 0.9
    chance = apart.interval()
    assert chance.low <= apart.chance + 0.05 and chance.value < apart.chance + 0.15
    assert chance.n == 40


def test_balanced_accuracy_is_the_mean_recall_and_r2_is_by_hand():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (90, 2)), rng.normal(1.5, 1, (30, 2))])
    labels = np.repeat([0, 1], [90, 30])
    found = probe(x, labels)
    hits = found.gain > 0
    recalls = [hits[labels == each].mean() for each in (0, 1)]
    assert found.interval().value == pytest.approx(np.mean(recalls))
    # A column that is nothing but the label's copy: ridge shrinks it a thousandth or less.
    assert probe(labels[:, None].astype(float), x[:, 0] * 0 + labels).interval().value > 0.99


def test_what_a_probe_refuses():
    x = gaussians(12, 3, 0)[0]
    two = np.tile(["a", "b"], 6)
    with pytest.raises(ValueError, match="all alike"):
        probe(x, ["a"] * 12)
    with pytest.raises(ValueError, match="these have one: rare"):
        probe(x, ["rare", *two[:11]])
    with pytest.raises(ValueError, match="one group"):
        probe(x, x[:, 0], [0] * 12)
    with pytest.raises(ValueError, match="NaN"):
        probe(x, [math.nan, *x[1:, 0]])
    with pytest.raises(ValueError, match=r"expected \(12,\)"):
        probe(x, two[:5])
    with pytest.raises(ValueError, match="groups must be"):
        probe(x, two, [1, 2])
    with pytest.raises(ValueError, match="finite floats"):
        probe(np.full((12, 3), math.inf), two)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"sklearn is not installed: .*llava-soundclip\[evaluation\]"):
        probe(gaussians(12, 3, 0)[0], np.tile(["a", "b"], 6))


# A label out of the waveform


def tone(frequency, seconds=0.5, rate=16_000):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def test_band_energy_of_known_sounds():
    assert band_energy(tone(1000), 16_000) == pytest.approx(0, abs=1e-6)
    assert band_energy(tone(1000) + tone(6000), 16_000) == pytest.approx(10 * math.log10(0.5), abs=1e-6)
    assert band_energy(np.stack([tone(1000), 3 * tone(6000)]), 16_000) == pytest.approx(-10, abs=1e-6)
    assert band_energy(tone(6000), 16_000) <= -100
    assert band_energy(np.ones(64), 16_000) == -120
    assert math.isnan(band_energy(np.zeros(64), 16_000))
    assert band_energy(1e-30 * tone(1000).astype(np.float32), 16_000) == pytest.approx(0, abs=1e-6)
    for samples in (64, 65):  # with and without a bin at half the rate: two bands make the whole
        noise = np.random.default_rng(0).normal(size=samples)
        shares = [10 ** (band_energy(noise, 1000, low=a, high=b) / 10) for a, b in ((0, 200), (200.1, 500))]
        assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("waveform", "options"),
    [
        (np.zeros(0), {}),
        (np.zeros((2, 2, 2)), {}),
        (np.array([math.nan]), {}),
        (np.ones(8), {"low": 400, "high": 300}),
        (np.ones(8), {"low": 8000, "high": 9000}),
    ],
)
def test_what_band_energy_refuses(waveform, options):
    with pytest.raises(ValueError, match="expected finite|no band"):
        band_energy(waveform, 16_000, **options)


# Dimension


@pytest.mark.parametrize("d", [2, 5, 10])
@pytest.mark.parametrize("shape", ["gaussian", "uniform"])
def test_a_flat_cloud_has_its_dimension(d, shape):
    rng = np.random.default_rng(d)
    flat = rng.normal(size=(800, d)) if shape == "gaussian" else rng.uniform(size=(800, d))
    x = np.pad(flat, ((0, 0), (0, 24 - d))) @ rotation(24) + 3
    assert two_nn(x) == pytest.approx(d, rel=0.2)
    assert participation_ratio(x) == pytest.approx(d, rel=0.05)
    assert two_nn(1e3 * x) == pytest.approx(two_nn(x), rel=1e-6)


def test_a_bent_line_is_one_dimension_of_neighbours_and_two_of_variance():
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 600)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert two_nn(x) == pytest.approx(1, rel=0.15)
    assert participation_ratio(x) == pytest.approx(2, rel=0.05)


def test_two_nn_is_the_slow_one_and_counts_equal_rows_once():
    x = np.random.default_rng(0).normal(size=(30, 3))
    logs = []
    for i in range(30):
        first, second = sorted(np.linalg.norm(x[i] - x[j]) for j in range(30) if j != i)[:2]
        logs.append(math.log(second / first))
    logs.sort()
    expected = (27 - 1) / (sum(logs[:27]) + 3 * logs[26])
    assert two_nn(x) == pytest.approx(expected)
    assert two_nn(np.concatenate([x, x[:7]])) == pytest.approx(expected)
    assert two_nn(torch.from_numpy(x)) == pytest.approx(expected)


@given(n=st.integers(3, 9), d=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_participation_ratio_is_that_of_the_eigenvalues(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d))
    values = np.linalg.eigvalsh(np.cov(x.T).reshape(d, d))
    assert participation_ratio(x) == pytest.approx(values.sum() ** 2 / (values**2).sum())


def test_the_interval_of_halves_is_as_wide_as_fresh_samples_spread():
    def sample(seed):
        return np.random.default_rng(seed).normal(size=(150, 4)) * [1, 1, 2, 3]

    found = intrinsic_dimension(sample(0))
    for name, figure in (("participation_ratio", participation_ratio), ("two_nn", two_nn)):
        width = found[name].interval.high - found[name].interval.low
        fresh = np.quantile([figure(sample(seed)) for seed in range(1, 61)], (0.025, 0.975))
        assert width == pytest.approx(fresh[1] - fresh[0], rel=0.5), name
        assert found[name].interval.low < found[name].interval.value < found[name].interval.high
        assert found[name].half == pytest.approx(found[name].interval.value, rel=0.2)


def test_what_has_no_dimension():
    with pytest.raises(ValueError, match="19 distinct"):
        two_nn(np.eye(19))
    with pytest.raises(ValueError, match="first"):
        two_nn(np.array(list(itertools.product(range(6), repeat=2)), dtype=float))
    with pytest.raises(ValueError, match="all alike"):
        participation_ratio(np.full((30, 3), 0.1))
    with pytest.raises(ValueError, match="finite floats"):
        two_nn(np.ones((30, 3), dtype=int))


def test_what_bounds_and_geometry_refuse():
    x, c = gaussians(12, 3, 0.5)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        infonce_bound(x, c[:, :2], tau=1)
    with pytest.raises(ValueError, match="tau"):
        infonce_bound(x, c, tau=0)
    with pytest.raises(ValueError, match="row by row"):
        held_out_bound(x, c[:, :2])
    with pytest.raises(ValueError, match="cosine or linear"):
        held_out_bound(x, c, critic="deep")
    with pytest.raises(ValueError, match="3 sources"):
        held_out_bound(x, c, [0, 1, 2] * 4)
    for figure in (cka, independence):
        with pytest.raises(ValueError, match="row by row, got 12 and 7"):
            figure(x, c[:7])
    with pytest.raises(ValueError, match="at least 4 independent pairs"):
        independence(x, c, [0, 1, 2] * 4)
    with pytest.raises(ValueError, match="half of the 6 sources may have 3 clips"):
        cka(x[:6], c[:6])
    with pytest.raises(ValueError, match="rows of c are all alike"):
        independence(x, np.ones((12, 3)))


# A features folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return FeatureFolder(write_features(tmp_path_factory.mktemp("features")))


def test_a_folder_is_measured_raw_and_projected(folder):
    torch.manual_seed(0)
    projector = Projector(AUDIO, WIDTH, 8).eval()
    rows = torch.arange(1, len(folder))
    chosen = folder.ids[1:]
    kinds = {id: ["dog", "cat"][number % 2] for number, id in enumerate(chosen)}
    loudness = {id: float(number % 7) for number, id in enumerate(chosen)} | {
        chosen[3]: None,
        chosen[4]: math.nan,
    }
    labels = {"kind": kinds, "loudness": loudness}
    found = json.loads(json.dumps(measure_information(folder, projector, rows, labels, limit=100, seed=2)))
    assert found["clips"] == len(rows) and found["drawn"] == min(100, len(rows))
    assert found["sources"] == len(set(folder.sources[1:]))
    assert set(found["shared"]) == {"raw", "projected", "gain"}
    for side in ("raw", "projected"):
        assert set(found["shared"][side]) == {"cosine", "linear", "cka", "p"}
    assert found["shared"]["gain"]["linear"]["value"] == pytest.approx(
        found["shared"]["projected"]["linear"]["value"] - found["shared"]["raw"]["linear"]["value"]
    )
    assert set(found["dimension"]) == {"raw", "projected", "picture"}
    kind = found["unique"]["kind"]
    assert kind["measure"] == "balanced accuracy" and kind["chance"] == 0.5
    assert kind["lost"]["value"] == pytest.approx(kind["raw"]["value"] - kind["projected"]["value"])
    assert found["unique"]["loudness"]["clips"] == min(100, len(rows) - 2)

    assert found["geometry_clips"] == min(100, len(rows))


def test_geometry_is_that_of_one_clip_a_source(folder, monkeypatch):
    monkeypatch.setattr("llava_soundclip.evaluation.information.measure.GEOMETRY", 10)
    torch.manual_seed(0)
    projector = Projector(AUDIO, WIDTH, 8).eval()
    rows = torch.arange(0, len(folder), 3)  # there are three clips a film
    found = measure_information(folder, projector, rows, seed=2)
    films = [folder.sources[row] for row in rows.tolist()]
    expected = cka(aligned(folder, rows, projector), seen(folder, rows), films, seed=2)
    assert found["shared"]["projected"]["cka"] == pytest.approx(expected.as_dict())
    expected = intrinsic_dimension(folder.rows(rows)[0], films, seed=2)["two_nn"]
    assert found["dimension"]["raw"]["two_nn"] == pytest.approx(expected.as_dict())
    assert found["unique"] == {} and found["geometry_clips"] == len(rows)
    assert measure_information(folder, None, torch.arange(len(folder)))["geometry_clips"] == len(rows)


def test_without_a_projector_raw_alone_is_measured(folder):
    found = measure_information(folder, None, torch.arange(len(folder)), limit=60)
    assert set(found["shared"]) == {"raw"} and set(found["dimension"]) == {"raw", "picture"}


def test_labels_that_do_not_fit_are_named(folder):
    rows = torch.arange(len(folder))
    with pytest.raises(ValueError, match="'kind' has a value for none"):
        measure_information(folder, None, rows, {"kind": {"nobody": "dog"}}, limit=60)
    own = dict(zip(folder.ids, folder.sources, strict=True))
    with pytest.raises(ValueError, match="the label 'film': a class must have clips in two groups"):
        measure_information(folder, None, rows, {"film": own}, limit=60)
    with pytest.raises(ValueError, match="source or clip"):
        measure_information(folder, None, rows, apart="film")


def test_sources_are_drawn_in_turn():
    numbers = np.repeat([0, 1, 2], [50, 3, 1])
    for limit, expected in ((2, None), (3, [1, 1, 1]), (5, [2, 2, 1]), (9, [5, 3, 1]), (99, [50, 3, 1])):
        drawn = drawn_in_turn(numbers, limit, 0).numpy()
        assert (np.diff(drawn) > 0).all() and len(drawn) == min(limit, 54)
        assert expected is None or np.bincount(numbers[drawn]).tolist() == expected


def test_many_rare_classes_warn_of_nothing():
    rng = np.random.default_rng(6)
    labels = [f"kind {n % 30}" for n in range(60)]  # pytest makes errors of warnings
    assert probe(rng.normal(size=(60, 4)), labels).measure == "balanced accuracy"
