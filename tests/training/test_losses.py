"""The losses by value and gradient: against loops written from F.4, over processes, and in tiles."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from llava_soundclip.training.losses import LOSSES, InfoNCE, PairLoss, make_loss

NAMES = ["cosine", "mse", "distribution", "infonce", "infonce+distribution"]
CONTRASTIVE = ["infonce", "infonce+distribution"]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pairs(batch: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sounds and CLS tokens of different sizes and means, somewhat alike in each pair."""
    generator = torch.Generator().manual_seed(seed)
    c = 3 * torch.randn(batch, width, generator=generator, dtype=torch.float64) + 1
    f_a = 0.5 * c + torch.randn(batch, width, generator=generator, dtype=torch.float64)
    return f_a.to(dtype), c.to(dtype)


def cosine_by_loops(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def infonce_by_loops(f_a: list, c: list, tau: float, score: Any = cosine_by_loops) -> dict[str, float]:
    size, a2v, v2a = len(f_a), 0.0, 0.0
    for i in range(size):
        to_pictures = [math.exp(score(f_a[i], c[j]) / tau) for j in range(size)]
        to_sounds = [math.exp(score(c[i], f_a[j]) / tau) for j in range(size)]
        a2v += math.log(to_pictures[i] / sum(to_pictures))
        v2a += math.log(to_sounds[i] / sum(to_sounds))
    return {"loss": -1 / (2 * size) * (a2v + v2a), "a2v": -a2v / size, "v2a": -v2a / size}


def distribution_by_loops(f_a: list, c: list, strength: float) -> dict[str, float]:
    def moments(values: list[float]) -> tuple[float, float]:
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    means = deviations = 0.0
    for sounds, pictures in zip(zip(*f_a, strict=True), zip(*c, strict=True), strict=True):
        (mu_a, sigma_a), (mu_v, sigma_v) = moments(list(sounds)), moments(list(pictures))
        means += (mu_a - mu_v) ** 2
        deviations += (sigma_a - sigma_v) ** 2
    return {"loss": strength * means + strength * deviations, "mean": means, "deviation": deviations}


def by_loops(
    name: str, f_a: Tensor, c: Tensor, tau: float = 0.07, strength: float = 0.02
) -> dict[str, float]:
    """F.4 and the two plain losses of Table 7, number by number in float64."""
    sounds, pictures = f_a.double().tolist(), c.double().tolist()
    if name == "cosine":
        cosine = sum(map(cosine_by_loops, sounds, pictures)) / len(sounds)
        return {"loss": 1 - cosine, "cosine": cosine}
    if name == "mse":
        mse = sum(
            (x - y) ** 2 for a, b in zip(sounds, pictures, strict=True) for x, y in zip(a, b, strict=True)
        )
        return dict.fromkeys(["loss", "mse"], mse / f_a.numel())
    if name == "distribution":
        return distribution_by_loops(sounds, pictures, strength)
    if name == "infonce":
        return infonce_by_loops(sounds, pictures, tau)
    contrast = infonce_by_loops(sounds, pictures, tau)
    moments = distribution_by_loops(sounds, pictures, strength)
    return contrast | moments | {"loss": contrast["loss"] + moments["loss"]}


def numbers(parts: dict[str, Tensor]) -> dict[str, float]:
    return {name: part.item() for name, part in parts.items()}


def gradients(loss: PairLoss, f_a: Tensor, c: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """The parts and both gradients."""
    f_a, c = f_a.clone().requires_grad_(), c.clone().requires_grad_()
    parts = loss(f_a, c)
    parts["loss"].backward()
    assert f_a.grad is not None
    return numbers(parts), f_a.grad, torch.zeros_like(c) if c.grad is None else c.grad


class TestValues:
    @pytest.mark.parametrize("name", NAMES)
    @given(batch=st.integers(2, 9), width=st.integers(1, 12), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=25)
    def test_are_the_formulas(self, name: str, batch: int, width: int, seed: int) -> None:
        f_a, c = pairs(batch, width, seed=seed)
        assert numbers(make_loss(name)(f_a, c)) == pytest.approx(by_loops(name, f_a, c), rel=1e-9, abs=1e-12)

    @given(
        batch=st.integers(2, 7),
        tau=st.floats(0.02, 10),
        strength=st.floats(0, 10),
        chunk=st.none() | st.integers(1, 9),
    )
    @settings(deadline=None, max_examples=40)
    def test_follow_the_options(self, batch: int, tau: float, strength: float, chunk: int | None) -> None:
        f_a, c = pairs(batch, 5)
        loss = make_loss("infonce+distribution", tau=tau, strength=strength, chunk=chunk)
        expected = by_loops("infonce+distribution", f_a, c, tau, strength)
        assert numbers(loss(f_a, c)) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("name", NAMES)
    def test_in_float32_at_the_papers_width(self, name: str) -> None:
        f_a, c = pairs(24, 1024, torch.float32)
        assert numbers(make_loss(name)(f_a, c)) == pytest.approx(by_loops(name, f_a, c), rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("name", NAMES)
    def test_halves_are_computed_in_float32(self, name: str, dtype: torch.dtype) -> None:
        f_a, c = pairs(6, 7, dtype)
        parts, grad, _ = gradients(make_loss(name), f_a, c)
        assert parts == pytest.approx(by_loops(name, f_a, c), rel=1e-5, abs=1e-6)
        assert grad.dtype == dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert {part.dtype for part in make_loss(name)(f_a, c).values()} == {wide}
        assert make_loss(name)(f_a, c.float())["loss"].dtype == wide

    @pytest.mark.parametrize("chunk", [None, 4])
    def test_autocast_changes_nothing(self, chunk: int | None) -> None:
        loss = InfoNCE(chunk=chunk)
        plain = gradients(loss, *pairs(9, 16, torch.float32))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = gradients(loss, *pairs(9, 16, torch.float32))
        assert mixed[0] == plain[0]
        if chunk:  # the plain form's backward is autograd's own, which belongs outside autocast
            assert torch.equal(mixed[1], plain[1])

    def test_one_pair_has_no_negatives(self) -> None:
        parts, grad, _ = gradients(InfoNCE(), *pairs(1, 4))
        assert parts == pytest.approx({"loss": 0, "a2v": 0, "v2a": 0}, abs=1e-12)
        assert grad.abs().max() < 1e-12

    @pytest.mark.parametrize("name", NAMES)
    def test_only_the_loss_has_a_graph(self, name: str) -> None:
        f_a, c = pairs(3, 4)
        parts = make_loss(name)(f_a.requires_grad_(), c)
        assert [part for part, value in parts.items() if value.requires_grad] == ["loss"]
        assert all(value.shape == () for value in parts.values())


@pytest.mark.parametrize("name", LOSSES)
def test_all_processes_count_unless_told_otherwise(name: str) -> None:
    assert make_loss(name).gather is True
    assert make_loss(name, gather=False).gather is False


class TestMistakes:
    """Readings of F.4 that aren't taken are far from the value, so that the tests above would see them."""

    def test_moments_are_summed_over_dimensions(self) -> None:
        f_a, c = pairs(6, 256)
        summed = by_loops("distribution", f_a, c)["loss"]
        assert make_loss("distribution")(f_a, c)["loss"].item() == pytest.approx(summed)
        moments = np.stack([(f_a.mean(0) - c.mean(0)).numpy(), (f_a.std(0) - c.std(0)).numpy()])
        averaged = 0.02 * np.square(moments).mean(1).sum()
        assert summed == pytest.approx(256 * averaged)
        twice = [torch.cat([x, x], 1) for x in (f_a, c)]
        assert make_loss("distribution")(*twice)["loss"].item() == pytest.approx(2 * summed)

    def test_moments_are_of_f_a_as_it_is(self) -> None:
        f_a, c = pairs(6, 8)
        parts = numbers(make_loss("distribution")(f_a, c))
        units = numbers(make_loss("distribution")(*(x / x.norm(dim=1, keepdim=True) for x in (f_a, c))))
        assert all(parts[part] > 5 * units[part] for part in parts)

    def test_deviations_are_not_variances_nor_of_n(self) -> None:
        f_a, c = pairs(4, 8)
        deviation = make_loss("distribution")(f_a, c)["deviation"].item()
        for other in ((f_a.var(0) - c.var(0)), (f_a.std(0, correction=0) - c.std(0, correction=0))):
            assert deviation != pytest.approx(other.square().sum().item(), rel=0.1)

    def test_infonce_has_both_directions_and_cosines(self) -> None:
        f_a, c = pairs(6, 8)
        c[0] = f_a[0] + f_a[1]  # near two sounds
        parts = numbers(InfoNCE()(f_a, c))
        assert parts["a2v"] != pytest.approx(parts["v2a"], rel=0.1)
        parts = numbers(InfoNCE(tau=1)(f_a, c))
        products = infonce_by_loops(
            (3 * f_a).tolist(), c.tolist(), 1, lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
        )
        assert parts["loss"] != pytest.approx(products["loss"], rel=0.5)


class TestInvariances:
    @pytest.mark.parametrize("name", ["cosine", "infonce"])
    @given(scale=st.floats(1e-6, 1e6))
    @settings(deadline=None, max_examples=20)
    def test_cosines_know_no_scale(self, name: str, scale: float) -> None:
        f_a, c = pairs(5, 6)
        loss = make_loss(name)
        assert numbers(loss(f_a * scale, c)) == pytest.approx(numbers(loss(f_a, c)), rel=1e-9)
        assert numbers(loss(f_a, c * scale)) == pytest.approx(numbers(loss(f_a, c)), rel=1e-9)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_order_of_pairs_is_nothing(self, name: str) -> None:
        f_a, c = pairs(7, 5)
        order = torch.randperm(7)
        assert numbers(make_loss(name)(f_a[order], c[order])) == pytest.approx(
            numbers(make_loss(name)(f_a, c))
        )

    def test_moments_know_no_pairing(self) -> None:
        f_a, c = pairs(7, 5)
        there, elsewhere = (numbers(make_loss("distribution")(f_a, other)) for other in (c, c.roll(1, 0)))
        assert there == pytest.approx(elsewhere)
        assert make_loss("infonce")(f_a, c)["loss"] < make_loss("infonce")(f_a, c.roll(1, 0))["loss"]

    def test_perfect_pairs(self) -> None:
        c = torch.eye(8) * 20
        found = {name: make_loss(name)(c, c)["loss"].item() for name in NAMES}
        assert found == pytest.approx(dict.fromkeys(NAMES, 0), abs=1e-4)


class TestGradients:
    @pytest.mark.parametrize(
        ("name", "options"),
        [(name, {}) for name in NAMES]
        + [(name, {"chunk": chunk}) for name in CONTRASTIVE for chunk in (2, 3, 50)],
    )
    def test_gradcheck(self, name: str, options: dict[str, int]) -> None:
        f_a, c = (x.requires_grad_() for x in pairs(5, 4))
        loss = make_loss(name, **options)
        assert torch.autograd.gradcheck(lambda f_a, c: loss(f_a, c)["loss"], (f_a, c))

    @pytest.mark.parametrize("chunk", [None, 2])
    def test_the_parts_weigh_the_gradient(self, chunk: int | None) -> None:
        """One direction's sums alone: the other's gradient is then missing, not zero."""
        x, y = (x.requires_grad_() for x in pairs(5, 4))
        for side in (0, 1):
            assert torch.autograd.gradcheck(
                lambda x, y, k=side: InfoNCE(tau=2, chunk=chunk)._log_sums(x, y)[k], (x, y)
            )

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("case", ["silent", "collapsed"])
    def test_stay_finite(self, name: str, case: str) -> None:
        f_a, c = pairs(4, 5, torch.float32)
        f_a[: 2 if case == "silent" else 4] = 0 if case == "silent" else 1.5
        parts, grad, _ = gradients(make_loss(name), f_a, c)
        assert all(map(math.isfinite, parts.values()))
        assert grad.abs().max() < 100

    @pytest.mark.parametrize("name", NAMES)
    def test_descend_to_the_pictures(self, name: str) -> None:
        f_a, c = pairs(8, 6, torch.float32)
        f_a = nn.Parameter(f_a)
        optimiser = torch.optim.Adam([f_a], lr=0.05)
        first = make_loss(name)(f_a, c)["loss"].item()
        for _ in range(200):
            optimiser.zero_grad()
            value = make_loss(name)(f_a, c)["loss"]
            value.backward()
            optimiser.step()
        assert value.item() < first / 10


class TestChunks:
    @pytest.mark.parametrize("name", CONTRASTIVE)
    @given(batch=st.integers(2, 40), chunk=st.integers(1, 45), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=25)
    def test_are_the_same_loss(self, name: str, batch: int, chunk: int, seed: int) -> None:
        f_a, c = pairs(batch, 6, torch.float32, seed)
        whole, tiled = (gradients(make_loss(name, chunk=size), f_a, c) for size in (None, chunk))
        assert tiled[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
        torch.testing.assert_close(tiled[1:], whole[1:], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("tau", [1e-3, 0.01, 0.07, 100.0])
    def test_are_the_same_at_any_temperature(self, tau: float) -> None:
        f_a, c = pairs(30, 6)
        f_a[7] = -c[7]  # e^(-1 / 0.001) is 0 in any float, its logarithm is not
        whole, tiled = (gradients(InfoNCE(tau=tau, chunk=size), f_a, c) for size in (None, 7))
        assert math.isfinite(whole[0]["loss"])
        assert tiled[0] == pytest.approx(whole[0], rel=1e-9)
        torch.testing.assert_close(tiled[1:], whole[1:], rtol=1e-9, atol=1e-12)

    def test_are_the_same_at_size(self) -> None:
        f_a, c = pairs(1024, 64, torch.float32)
        whole, tiled = (gradients(InfoNCE(chunk=size), f_a, c) for size in (None, 200))
        assert tiled[0] == pytest.approx(whole[0], rel=1e-5)
        scale = whole[1].abs().max().item()
        torch.testing.assert_close(tiled[1:], whole[1:], rtol=0, atol=1e-5 * scale)

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_memory_does_not_grow_with_the_square(self) -> None:
        """8,192 pairs in under twice the process's memory of 1,024."""
        small, _ = memory(1024, 256)
        large, added = memory(8192, 256)
        assert large < 2 * small
        assert added < 80  # MiB: a few times f_a's 8, where one matrix of all cosines has 256


def memory(batch: int, chunk: int | None) -> tuple[float, float]:
    """Peak MiB of a process of its own, and what of it a forward and backward pass at D = 256 added."""
    code = f"""
import torch
from llava_soundclip.training.losses import InfoNCE

def mebibytes(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) / 1024

torch.set_num_threads(1)
loss = InfoNCE(chunk={chunk})
loss(torch.randn(64, 256, requires_grad=True), torch.randn(64, 256))["loss"].backward()
f_a, c = torch.randn({batch}, 256, requires_grad=True), torch.randn({batch}, 256)
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = mebibytes("VmRSS")
loss(f_a, c)["loss"].backward()
print(mebibytes("VmHWM"), mebibytes("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, added = map(float, done.stdout.split())
    return peak, added


class TestRefusals:
    @pytest.mark.parametrize(
        "x", [torch.ones(4), torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.int64), torch.tensor(1.0)]
    )
    @pytest.mark.parametrize("name", NAMES)
    def test_other_tensors(self, name: str, x: Tensor) -> None:
        with pytest.raises(ValueError, match=r"Expected f_a \(B, D\) of floats, got \("):
            make_loss(name)(x, torch.ones(2, 4))
        with pytest.raises(ValueError, match=r"Expected c \(B, D\) of floats, got \("):
            make_loss(name)(torch.ones(2, 4), x)

    @pytest.mark.parametrize("shape", [(3, 4), (2, 5), (1, 4), (2, 1)])
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_not_pairs(self, name: str, shape: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"must be pairs.*\(2, 4\) and"):
            make_loss(name)(torch.ones(2, 4), torch.ones(shape))

    @pytest.mark.parametrize("name", NAMES)
    def test_no_pairs(self, name: str) -> None:
        with pytest.raises(ValueError, match="no pairs"):
            make_loss(name)(torch.ones(0, 4), torch.ones(0, 4))

    @pytest.mark.parametrize("name", ["distribution", "infonce+distribution"])
    def test_one_pair_has_no_deviation(self, name: str) -> None:
        with pytest.raises(ValueError, match="needs 2 pairs or more"):
            make_loss(name)(torch.ones(1, 4), torch.ones(1, 4))

    @pytest.mark.parametrize("name", CONTRASTIVE)
    def test_options_out_of_range(self, name: str) -> None:
        for tau in (0, -1, math.nan, math.inf, "0.07", True, None):
            with pytest.raises(ValueError, match="tau must be a number above 0"):
                make_loss(name, tau=tau)
        for chunk in (0, -1, 2.0, True, "4"):
            with pytest.raises(ValueError, match="chunk must be an int of 1 or more, or None"):
                make_loss(name, chunk=chunk)

    @pytest.mark.parametrize("strength", [-1, math.nan, math.inf, "0.02", True, None])
    def test_another_strength(self, strength) -> None:
        with pytest.raises(ValueError, match="strength .lambda. must be a number of 0 or more"):
            make_loss("distribution", strength=strength)

    def test_unknown_names(self) -> None:
        with pytest.raises(
            ValueError, match="no loss 'l1'; known: cosine, mse, distribution, infonce, infonce"
        ):
            make_loss("l1")
        with pytest.raises(ValueError, match="'cosine' has no option tau, chunk; it has gather"):
            make_loss("cosine", tau=1, chunk=2)

    def test_the_table_is_table_7(self) -> None:
        assert list(LOSSES) == NAMES
        assert repr(make_loss("infonce", chunk=5)) == "InfoNCE(tau=0.07, chunk=5)"
        assert "DistributionMatching(strength=0.02)" in repr(make_loss("infonce+distribution"))

    def test_the_package_stays_light(self) -> None:
        code = (
            "import sys, llava_soundclip; assert not {'torch', 'llava_soundclip.training'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


SPLITS = [[4, 4], [3, 5], [7, 1], [8, 0]]  # pairs of each of the two processes
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    *((name, {"chunk": 3}) for name in CONTRASTIVE),
]


class Ranks:
    """torch.distributed in one process: what the losses call, and no more.

    The ranks run one after the other. What a rank sends is there for the others in the next round, so they run again
    until all send what they sent before.
    """

    def __init__(self, world: int) -> None:
        self.world = world

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """The results of all ranks."""
        sent: list[list[Tensor]] = [[] for _ in range(self.world)]
        for _ in range(10):
            self.received, self.sent, self.misfits = sent, [[] for _ in range(self.world)], 0
            results, errors = [], []
            for rank in range(self.world):
                self.rank = rank
                try:
                    results.append(function(rank))
                except ValueError as error:
                    errors.append(error)
            if _same(sent, self.sent):
                break
            sent = self.sent
        else:
            raise AssertionError("the ranks send something else in every round")
        if errors:
            raise errors[0]
        assert not self.misfits
        return results

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.world

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        for part, theirs in zip(parts, self._exchange(x), strict=True):
            part.copy_(theirs)

    def all_reduce(self, x: Tensor) -> None:
        x.copy_(torch.stack(self._exchange(x)).sum(0))

    def _exchange(self, x: Tensor) -> list[Tensor]:
        assert x.is_contiguous()  # NCCL takes no others
        call = len(self.sent[self.rank])
        self.sent[self.rank].append(x.detach().clone())
        everyone = []
        for theirs in self.received:
            fits = call < len(theirs) and (theirs[call].shape, theirs[call].dtype) == (x.shape, x.dtype)
            self.misfits += not fits
            everyone.append(theirs[call] if fits else x.detach().clone())
        return everyone


def _same(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(first, second, strict=True))


class TestRanks:
    """The pairs of several processes, without the seconds that those need to start."""

    @pytest.fixture
    def ranks(self, monkeypatch: pytest.MonkeyPatch) -> Ranks:
        three = Ranks(3)
        monkeypatch.setattr("llava_soundclip.training.losses.distributed", three)
        return three

    @pytest.mark.parametrize("sizes", [[3, 3, 3], [2, 6, 1], [0, 4, 5], [5, 4, 0], [4, 5]], ids=str)
    @pytest.mark.parametrize(("name", "options"), VARIANTS)
    def test_their_mean_is_the_whole_batch(
        self, ranks: Ranks, name: str, options: dict[str, Any], sizes: list[int]
    ) -> None:
        f_a, c = (x.T.contiguous().T for x in pairs(9, 6))
        ends = np.cumsum(sizes).tolist()
        ranks.world = len(sizes)

        def of_rank(rank: int) -> tuple[dict[str, float], Tensor, Tensor]:
            own = slice(ends[rank] - sizes[rank], ends[rank])
            return gradients(make_loss(name, **options), f_a[own], c[own])

        found = ranks.run(of_rank)
        _, grad_f_a, grad_c = gradients(make_loss(name, gather=False, **options), f_a, c)
        mean = {part: sum(parts[part] for parts, _, _ in found) / len(sizes) for part in found[0][0]}
        assert mean == pytest.approx(by_loops(name, f_a, c), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(torch.cat([grad for _, grad, _ in found]) / len(sizes), grad_f_a)
        torch.testing.assert_close(torch.cat([grad for _, _, grad in found]) / len(sizes), grad_c)

    def test_the_default_device_means_nothing(self, ranks: Ranks) -> None:
        f_a, c = pairs(6, 4)
        with torch.device("meta"):
            found = ranks.run(lambda rank: make_loss("infonce+distribution")(f_a[rank::3], c[rank::3]))
        mean = sum(parts["loss"].item() for parts in found) / 3
        assert mean == pytest.approx(by_loops("infonce+distribution", f_a, c)["loss"], rel=1e-9)

    def test_their_tensors_must_fit(self, ranks: Ranks) -> None:
        f_a, c = pairs(4, 6)

        def widths(rank: int) -> None:
            InfoNCE()(f_a[:, : 4 + rank], c[:, : 4 + rank])

        with pytest.raises(ValueError, match="differ in .*: 4 in float64, 5 in float64, 6 in float64"):
            ranks.run(widths)

        def precisions(rank: int) -> None:
            dtype = [torch.float64, torch.float32, torch.bfloat16][rank]  # halves are computed in float32
            InfoNCE()(f_a.to(dtype), c.to(dtype))

        with pytest.raises(ValueError, match="precision: 6 in float64, 6 in float32, 6 in float32"):
            ranks.run(precisions)


def tiny_mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6)).double()


def run_a_process(rank: int, folder: str) -> None:
    """One of two: its losses and gradients for every split and variant go to a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    f_a, c = pairs(8, 6)
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out: dict[Any, Any] = {}
    for sizes in SPLITS:
        own = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], 8)
        for number, (name, options) in enumerate(VARIANTS):
            loss = make_loss(name, **options)
            out["leaves", str(sizes), number] = gradients(loss, f_a[own], c[own])
            model = DistributedDataParallel(tiny_mlp())
            parts = loss(model(z[own]), c[own])
            parts["loss"].backward()
            out["ddp", str(sizes), number] = parts["loss"].item(), [p.grad for p in model.parameters()]
    out["alone"] = gradients(InfoNCE(gather=False), f_a, c) if rank == 0 else None
    out["local negatives"] = gradients(InfoNCE(gather=False), f_a[4 * rank :][:4], c[4 * rank :][:4])
    out["errors"] = []
    for mine in ([f_a, f_a[:, :5]][rank], [f_a, f_a.float()][rank], f_a[:0]):
        try:
            InfoNCE()(mine, mine)
        except ValueError as error:
            out["errors"].append(str(error))
    try:
        make_loss("distribution")(f_a[: 1 - rank], c[: 1 - rank])
    except ValueError as error:
        out["errors"].append(str(error))
    torch.save(out, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two gloo processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(run_a_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
class TestProcesses:
    @pytest.mark.parametrize("sizes", SPLITS, ids=str)
    @pytest.mark.parametrize("number", range(len(VARIANTS)))
    def test_their_mean_is_the_whole_batch(self, processes: list, number: int, sizes: list[int]) -> None:
        name, options = VARIANTS[number]
        parts, *grads = gradients(make_loss(name, **options), *pairs(8, 6))
        (first, *first_grads), (second, *second_grads) = (
            found["leaves", str(sizes), number] for found in processes
        )
        mean = {part: (first[part] + second[part]) / 2 for part in parts}
        assert mean == pytest.approx(parts, rel=1e-9, abs=1e-12)
        for whole, one, other in zip(grads, first_grads, second_grads, strict=True):
            torch.testing.assert_close(torch.cat([one, other]) / 2, whole)

    @pytest.mark.parametrize("sizes", SPLITS, ids=str)
    @pytest.mark.parametrize("number", range(len(VARIANTS)))
    def test_in_ddp(self, processes: list, number: int, sizes: list[int]) -> None:
        name, options = VARIANTS[number]
        z = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        model = tiny_mlp()
        loss = make_loss(name, **options)(model(z), pairs(8, 6)[1])["loss"]
        loss.backward()
        found = [process["ddp", str(sizes), number] for process in processes]
        assert sum(value for value, _ in found) / 2 == pytest.approx(loss.item(), rel=1e-9)
        for _, grads in found:
            torch.testing.assert_close(grads, [p.grad for p in model.parameters()])

    def test_one_can_go_alone(self, processes: list) -> None:
        f_a, c = pairs(8, 6)
        assert processes[0]["alone"][0] == pytest.approx(gradients(InfoNCE(), f_a, c)[0])

    def test_local_negatives_are_another_loss(self, processes: list) -> None:
        parts, grad, _ = gradients(InfoNCE(), *pairs(8, 6))
        local = [process["local negatives"] for process in processes]
        assert sum(found[0]["loss"] for found in local) / 2 < 0.9 * parts["loss"]
        assert not torch.allclose(torch.cat([found[1] for found in local]) / 2, grad, rtol=0.01)

    def test_all_refuse_together(self, processes: list) -> None:
        for process in processes:
            width, precision, empty, single = process["errors"]
            assert "differ in width or precision: 6 in float64, 5 in float64" in width
            assert "differ in width or precision: 6 in float64, 6 in float32" in precision
            assert "There are no pairs" in empty
            assert "needs 2 pairs or more" in single
