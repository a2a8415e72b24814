"""Against the golden outputs of the original AudioCLIP on real clips, in ../shared/parity."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_soundclip.encoders.audioclip import AudioCLIPEncoder
from llava_soundclip.encoders.audioclip.fbsp import blackman_harris, cut, frame_count, scale
from tests.encoders.fake_resnets import weights
from tests.encoders.parity import Goldens, frontend_stages

pytestmark = pytest.mark.parity

GOLDENS = Goldens("audioclip")
# Whole clips, of which those that stay show the same.
SLOW = ("car_horn", "thunder", "clock_alarm", "dog", "church_bells", "clock_alarm_unit", "short_0.4s_padded")
BINS = ("frontend", "frontend_first", "frontend_last")  # stages with one level per bin
AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@cache
def encoder() -> AudioCLIPEncoder:
    return AudioCLIPEncoder(weights("audioclip"))


@cache
def stages(name: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    tested, sound = encoder(), GOLDENS.sound(name)
    unit = name.endswith("_unit")
    tested.amplitude = "unit" if unit else "int16"
    sound = sound if unit else sound / np.float32(32_768)  # exactly what it was
    fbsp = tested.audio.fbsp
    first = torch.from_numpy(GOLDENS.sound(name)[0])
    frames = cut(scale(first)) * fbsp.window
    middle = frame_count(len(first)) // 2
    spectrograms = torch.stack([tested._frontend(channel) for channel in sound])
    pooled = tested.audio(spectrograms).sum(0)
    embedding = tested._embed([sound])[0]
    assert torch.allclose(tested.audio.project(pooled[None])[0], embedding, atol=1e-5)
    return {
        **frontend_stages(spectrograms),
        "waveform_first": first[:2000],
        "spectrum": fbsp(frames[middle : middle + 2]),
        "pooled": pooled,
        "embedding": embedding,
        "embedding_normalised": F.normalize(embedding, dim=0),
    }


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", GOLDENS.parameters(*SLOW))
def test_every_stage(name, strict):
    if strict and not AVX2:
        pytest.skip("the original's rounding is that of AVX2")
    for stage in GOLDENS.stages(name):
        if AVX2 or stage != "frontend_stats":  # its minimum is one bin, which other rounding moves by some dB
            if strict and stage in BINS and not GOLDENS.cases[name].get("tolerance"):
                check_bins(stages(name)[stage], GOLDENS.stages(name)[stage])
            else:
                GOLDENS.check(name, stage, stages(name)[stage], strict=strict)


def check_bins(ours: Tensor, golden: Tensor) -> None:
    """Hold dB within the strict tolerance, and within what a product's rounding moves in quiet bins.

    MKL sums a product in another order on another CPU: an amplitude then moves by up to 1e-8, where full scale is
    about 4. That is 1e-5 dB at -40 dB and 0.01 dB at -100 dB.
    """
    assert ours.shape == golden.shape and ours.isfinite().all()
    difference = (ours - golden).double().abs()
    limit = GOLDENS.specification["tolerance_strict"]["frontend"]["max_abs"]
    rounding = 20 / math.log(10) * 1e-8 / 10 ** (golden.double() / 20)
    assert (difference <= limit + rounding).all(), (difference - rounding).max().item()


def test_kernel():
    golden = GOLDENS.tensors()["model/fbsp_kernel_rows"]
    ours = encoder().audio.fbsp.kernel[[0, 1, 100, 512, 1024]]
    limit = GOLDENS.specification["tolerance"]["fbsp_kernel_rows"]["rel_l2"]
    assert (ours - golden).norm() <= limit * golden.norm()
    if AVX2:
        assert torch.equal(ours, golden)


@pytest.mark.parametrize("name", ["short_0.4s", "short_20ms"])
def test_network_alone(name):
    goldens = GOLDENS.stages(name)
    ours = encoder().audio.project(encoder().audio(goldens["frontend"]))[0]
    limit = GOLDENS.specification["network_only"]["embedding"]["rel_l2"]
    assert (ours - goldens["embedding"]).norm() <= limit * goldens["embedding"].norm()


def test_window():
    signal = pytest.importorskip("scipy.signal")
    window = signal.get_window("blackmanharris", 1654, fftbins=True).astype(np.float32)
    assert np.abs(blackman_harris().numpy() - window).max() < 1e-7


def test_the_drawn_weights_are_the_goldens():
    drawn = encoder().state_dict()
    for entry in GOLDENS.specification["state_dict"]:
        if not entry["name"].endswith(("window", "num_batches_tracked")):
            value = drawn.pop(entry["name"])
            assert list(value.shape) == entry["shape"], entry["name"]
            if value.numel():
                assert value.flatten()[0].item() == pytest.approx(entry["first"], abs=1e-6), entry["name"]
                assert value.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6)
    assert not drawn
