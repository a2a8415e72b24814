"""ImageBind without ../shared: a slow reference of its input, a few of its own numbers, its files, its limits."""

import logging
import subprocess
import sys
from functools import lru_cache, partial
from math import ceil, cos, gcd, log, pi, sin
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.imagebind import ImageBindEncoder
from llava_soundclip.encoders.imagebind import encoder as encoder_module
from llava_soundclip.encoders.imagebind import fbank as module
from llava_soundclip.encoders.imagebind.fbank import frontend, resample, windows
from tests.encoders.fake_imagebind import (
    FULL,
    SMALL,
    encoder,
    tower,
    weights,
    write_pth,
    write_safetensors,
)

GOLDENS = load_file(Path(__file__).parents[1] / "data" / "imagebind.safetensors")
SILENT_COLUMNS = 204 - GOLDENS["short/frontend"].shape[1]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def sound(seconds: float, seed: int = 0, channels: int = 1, offset: float = 0.0) -> np.ndarray:
    """(channels, samples) at 16 kHz: tones that rise, and noise; an offset on the first channel."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    rows = [0.2 * np.sin(2 * pi * (150 + 40 * i) * time**1.5) for i in range(1, channels + 1)]
    rows[0] += offset
    return (np.stack(rows) + rng.normal(0, 0.02, (channels, len(time)))).astype(np.float32)


def slow_frontend(waveform: np.ndarray) -> np.ndarray:
    """(3, 128, 204) from the description of the original, frame by frame, in float64."""
    signal = waveform.astype(np.float64).copy()
    length = signal.shape[1]
    spare = max(length - 32_000, 0)
    hann = np.array([0.5 - 0.5 * cos(2 * pi * n / 399) for n in range(400)])
    banks = []
    for start in (0, spare // 2, spare):
        view = signal[:, start : min(start + 32_000, length)]
        view -= view.mean()
        bank = np.zeros((128, 204))
        for column in range(min(1 + (view.shape[1] - 400) // 160, 204)):
            frame = view[0, column * 160 : column * 160 + 400].copy()
            frame -= frame.mean()
            emphasised = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
            power = np.abs(np.fft.rfft(emphasised * hann, 512)) ** 2
            bank[:, column] = np.log(np.maximum(slow_filters() @ power, 2.0**-23))
        banks.append((bank + 4.268) / 9.138)
    return np.stack(banks)


@lru_cache
def slow_filters() -> np.ndarray:
    mel = [1127 * log(1 + hertz / 700) for hertz in (20, 8000)]
    step = (mel[1] - mel[0]) / 129
    filters = np.zeros((128, 257))
    for row in range(128):
        left, centre, right = (mel[0] + (row + i) * step for i in range(3))
        for bin in range(256):
            at = 1127 * log(1 + bin * 16_000 / 512 / 700)
            filters[row, bin] = max(0.0, min((at - left) / (centre - left), (right - at) / (right - centre)))
    return filters


def slow_resample(signal: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Windowed sinc interpolation, output by output, in float64."""
    common = gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common
    cutoff = min(old, new) * 0.99
    result = []
    for j in range(ceil(len(signal) * to_rate / from_rate)):
        total = 0.0
        middle = j * old / new
        for i in range(
            max(ceil(middle - 7 * old / cutoff), 0), min(int(middle + 7 * old / cutoff) + 1, len(signal))
        ):
            x = (i / old - j / new) * cutoff
            if abs(x) < 6:
                sinc = 1.0 if x == 0 else sin(pi * x) / (pi * x)
                total += signal[i] * sinc * cos(pi * x / 12) ** 2 * cutoff / old
        result.append(total)
    return np.array(result)


SOUNDS = {
    "2.6 s": sound(2.6),
    "stereo, off centre": sound(3.0, channels=2, offset=0.25),
    "0.4 s": sound(0.4),
    "9 s": sound(9.0, seed=3),
    "one frame": sound(0.025),
}


def compare(name: str) -> None:
    difference = frontend(SOUNDS[name])[:, 0].double().numpy() - slow_frontend(SOUNDS[name])
    assert np.abs(difference).max() < 5e-3
    assert np.abs(difference).mean() < 5e-5


@pytest.mark.parametrize("name", SOUNDS)
def test_frontend_is_the_slow_one(name):
    compare(name)


def periodic_window(monkeypatch):
    monkeypatch.setattr(
        torch, "hann_window", lambda length, periodic: torch.signal.windows.hann(length, sym=False)
    )


def no_floor(monkeypatch):
    monkeypatch.setattr(module, "_FLOOR", 1e-10)


def other_pre_emphasis(monkeypatch):
    monkeypatch.setattr(module, "_PRE_EMPHASIS", 0.95)


def mean_not_in_place(monkeypatch):
    def aside(waveform):
        parts = [waveform[:, start:stop] for start, stop in windows(waveform.shape[1])]
        return torch.cat([original(part)[:1] for part in parts])

    original = module.frontend
    monkeypatch.setitem(globals(), "frontend", aside)


def mean_of_each_channel(monkeypatch):
    original = frontend
    monkeypatch.setitem(globals(), "frontend", lambda waveform: original(waveform[:1]))


def zeros_after_normalisation(monkeypatch):
    def after(waveform):
        banks = original(waveform)
        frames = 1 + (min(waveform.shape[1], 32_000) - 400) // 160
        banks[..., frames:] = 0
        return banks

    original = frontend
    monkeypatch.setitem(globals(), "frontend", after)


def two_deviations(monkeypatch):
    monkeypatch.setattr(module, "SCALE", 2 * module.SCALE)


def nyquist_weighed(monkeypatch):
    filters = module._mel_filters().clone()
    filters[-1, -1] = 1
    monkeypatch.setattr(module, "_mel_filters", lambda: filters)


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (periodic_window, "2.6 s"),
        (no_floor, "silence"),
        (other_pre_emphasis, "2.6 s"),
        (mean_not_in_place, "stereo, off centre"),
        (mean_of_each_channel, "stereo, off centre"),
        (zeros_after_normalisation, "0.4 s"),
        (two_deviations, "2.6 s"),
        (nyquist_weighed, "2.6 s"),
    ],
)
def test_mistakes_in_the_frontend_are_caught(monkeypatch, mistake, name):
    monkeypatch.setitem(SOUNDS, "silence", np.zeros((1, 16_000), np.float32))
    compare(name)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        compare(name)


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(44_100, 16_000), (8_000, 16_000), (22_255, 16_000), (48_000, 16_000)]
)
def test_resampling_is_the_slow_one(from_rate, to_rate):
    signal = sound(0.03, seed=from_rate)[0]
    ours = resample(torch.from_numpy(signal)[None], from_rate, to_rate)[0]
    slow = slow_resample(signal, from_rate, to_rate)
    assert ours.shape == slow.shape
    assert np.abs(ours.numpy() - slow).max() < 1e-6


def test_an_odd_rate_needs_no_gigabytes(monkeypatch):
    signal = torch.from_numpy(sound(0.01))
    whole = resample(signal, 1_009, 1_600)
    monkeypatch.setattr(module, "_KERNEL_VALUES", 2**17)
    torch.testing.assert_close(resample(signal, 1_009, 1_600), whole)


@given(samples=st.integers(1, 10**8))
def test_windows(samples):
    (first, *_), (middle, end), (last, stop) = windows(samples)
    assert first == 0 and stop == samples
    assert end - middle == stop - last == min(samples, 32_000)
    assert 0 <= (samples - end) - middle <= 1  # as much behind the middle one as before it


@pytest.fixture(scope="module")
def full() -> ImageBindEncoder:
    return encoder(**FULL)


def compare_network(full: ImageBindEncoder) -> None:
    """Two of the original's own numbers: a sound of 0.4 s behind the filter banks, and silence through all."""
    silent = torch.full((128, SILENT_COLUMNS), 4.268 / 9.138)
    banks = torch.cat([GOLDENS["short/frontend"], silent], dim=1)[None, None]
    for ours, golden in (
        (full.tower.trunk(full.tower.tokens(banks))[0], GOLDENS["short/trunk"]),
        (full.tower(banks)[0], GOLDENS["short/clip"]),
        (full.embed([np.zeros(80_000, np.float32)], 16_000)[0], GOLDENS["silence/embedding"]),
    ):
        assert (ours - golden).norm() / golden.norm() < 5e-5


def test_network(full):
    compare_network(full)


def tanh_gelu(monkeypatch, tower):
    monkeypatch.setattr(F, "gelu", partial(F.gelu, approximate="tanh"))


def time_major_patches(monkeypatch, tower):
    cls, patches = tower.positions[:, :1], tower.positions[:, 1:]
    turned = patches.unflatten(1, (19, 12)).transpose(1, 2).flatten(1, 2)
    monkeypatch.setitem(tower._parameters, "positions", torch.nn.Parameter(torch.cat([cls, turned], 1)))


def loose_norms(monkeypatch, tower):
    for block in tower.blocks:
        monkeypatch.setattr(block.norm_1, "eps", 1e-5)
        monkeypatch.setattr(block.norm_2, "eps", 1e-5)


def no_learned_key(monkeypatch, tower):
    for block in tower.blocks:
        for name in ("bias_k", "bias_v"):
            monkeypatch.setitem(block.attn._parameters, name, torch.nn.Parameter(torch.empty(1, 0, 768)))


def scale_ignored(monkeypatch, tower):
    monkeypatch.setitem(tower._buffers, "log_logit_scale", torch.tensor(log(20)))


@pytest.mark.parametrize(
    "mistake", [tanh_gelu, time_major_patches, loose_norms, no_learned_key, scale_ignored]
)
def test_mistakes_in_the_network_are_caught(monkeypatch, full, mistake):
    mistake(monkeypatch, full.tower)
    with pytest.raises(AssertionError):
        compare_network(full)


def test_the_mean_of_the_windows_is_not_normalised():
    small = encoder()
    banks = frontend(SOUNDS["9 s"])
    vectors = small.tower(banks)
    scale = small.tower.log_logit_scale.exp()
    torch.testing.assert_close(vectors.norm(dim=1), scale.expand(3))
    embedding = small.embed([SOUNDS["9 s"]], 16_000)[0]
    torch.testing.assert_close(embedding, vectors.mean(0))
    assert embedding.norm() < 0.999 * scale


def test_the_scale_is_cut_at_100():
    small = tower()
    small.log_logit_scale.fill_(7.0)
    torch.testing.assert_close(small(frontend(SOUNDS["0.4 s"])).norm(dim=1), torch.full((3,), 100.0))


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60_000), min_size=1, max_size=5),
    channels=st.integers(1, 8),
    rate=st.sampled_from([8_000, 16_000, 44_100, 192_000]),
)
def test_a_batch_equals_single_runs(lengths, channels, rate):
    small = encoder()
    sounds = [np.random.default_rng(n).normal(0, 0.1, (channels, n)).astype(np.float32) for n in lengths]
    batch = small.embed(sounds, rate)
    single = torch.cat([small.embed([s], rate) for s in sounds])
    assert batch.isfinite().all()
    assert (batch - single).abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "cosine"), [("float16", 0.9999), ("bfloat16", 0.999)])
def test_half_precision(tmp_path, dtype, cosine):
    path = write_pth(tmp_path / "imagebind_huge.pth")
    half = load_encoder("imagebind", checkpoint=path, dtype=dtype)
    assert half.tower.head.weight.dtype == getattr(torch, dtype)
    sounds = list(SOUNDS.values())
    whole = load_encoder("imagebind", checkpoint=path).embed(sounds, 16_000)
    halved = half.embed(sounds, 16_000)
    assert halved.dtype == torch.float32
    assert F.cosine_similarity(whole, halved).min() > cosine


def test_formats_give_the_same(tmp_path):
    expected = encoder().embed([SOUNDS["2.6 s"]], 16_000)
    files = [
        write_pth(tmp_path / "imagebind_huge.pth"),
        write_safetensors(tmp_path / "mirror"),
        tmp_path / "mirror" / "model.safetensors",
    ]
    loaded = [load_encoder("imagebind", checkpoint=str(file)) for file in files]
    for one in loaded:
        assert torch.equal(one.embed([SOUNDS["2.6 s"]], 16_000), expected)
        assert (one.dim, one.sampling_rate) == (32, 16_000)
    assert len({one.checkpoint for one in loaded}) == 1
    tuned = weights()
    tuned["modality_heads.audio.2.weight"] += 0.01
    assert (
        load_encoder("imagebind", checkpoint=write_pth(tmp_path / "x.pth", tuned)).checkpoint
        != loaded[0].checkpoint
    )


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights().items() if key != name}


def reshaped(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {**weights(), name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds no ImageBind audio tower"),
        ({"conv1.weight": torch.zeros(2, 2)}, "holds no ImageBind audio tower"),
        (without("modality_heads.audio.0.bias"), "1 tensors differ: head_norm.bias is missing"),
        (reshaped("modality_heads.audio.0.bias", 5), r"head_norm.bias is \(5,\), expected \(128,\)"),
        (
            {**weights(), "modality_heads.audio.9.bias": torch.zeros(3)},
            "modality_heads.audio.9.bias is .3,., expected no",
        ),
        (
            reshaped("modality_preprocessors.audio.pos_embedding_helper.pos_embed", 1, 229, 100),
            "no heads of 64",
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path, state, message):
    with pytest.raises(ValueError, match=message) as error:
        load_encoder("imagebind", checkpoint=write_pth(tmp_path / "some.pth", state))
    assert "some.pth" in str(error.value)


class Hostile:
    def __reduce__(self):
        return (print, ("this runs code",))


def test_hostile_and_cut_files_are_refused(tmp_path, capsys):
    path = tmp_path / "imagebind_huge.pth"
    torch.save({**weights(), "extra": Hostile()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_encoder("imagebind", checkpoint=path)
    assert "this runs code" not in capsys.readouterr().out
    content = write_pth(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match="truncated or isn't a checkpoint|holds more than tensors, or isn't a checkpoint"
    ):
        load_encoder("imagebind", checkpoint=path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"checkpoint": "huge"},
            ValueError,
            "unknown ImageBind checkpoint 'huge': give one of nielsr/imagebind",
        ),
        ({"checkpoint": "no/such/file.pth"}, FileNotFoundError, "no ImageBind checkpoint at"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is unknown"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        load_encoder("imagebind", **options)


def test_the_licence_is_told_once(tmp_path, caplog):
    encoder_module._say_licence.cache_clear()
    path = write_pth(tmp_path / "imagebind_huge.pth")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_encoder("imagebind", checkpoint=path)
    told = [record for record in caplog.records if "CC-BY-NC-SA-4.0" in record.getMessage()]
    assert len(told) == 1


def test_sizes_are_read_from_the_weights():
    assert encoder().dim == SMALL["dim"]
    assert len(encoder().tower.blocks) == SMALL["depth"]


MEASURE = """
import resource, sys
import torch
import llava_soundclip.encoders.imagebind, soxr, safetensors.torch
from llava_soundclip.encoders import load_encoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
encoder = load_encoder("imagebind", checkpoint=sys.argv[1])
audio = sum(p.nbytes for p in encoder.tower.state_dict().values())
print(audio, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_only_the_audio_part_enters_memory(tmp_path):
    """At full size, in a file with a gigabyte of other modalities, in a process of its own."""
    path = tmp_path / "imagebind_huge.pth"
    write_pth(path, {**weights(**FULL), "modality_trunks.vision.blocks.0.mlp.fc1.weight": torch.zeros(2**28)})
    script = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True, timeout=300
    )
    audio, peak = map(int, script.stdout.split())
    assert audio == 4 * 86_235_649  # the scale, a buffer, is the last one
    assert peak < 1.5 * audio
