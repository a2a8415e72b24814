"""AudioCLIP: its transform against a slow one, its network against the original's numbers, any sound and length.

`data/audioclip.safetensors` holds what the original (commit 45327aa) gave for 20 ms and 0.4 s of a real sound, for
2 s of silence, and for the weights of `fake_resnets`.
"""

import copy
import math
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llava_soundclip.encoders.audioclip import encoder as module
from llava_soundclip.encoders.audioclip import fbsp as fbsp_module
from llava_soundclip.encoders.audioclip.encoder import AudioCLIPEncoder, AudioCLIPOptions
from llava_soundclip.encoders.audioclip.fbsp import FBSP, blackman_harris, cut, frame_count, scale
from llava_soundclip.encoders.audioclip.tower import AudioTower
from tests.encoders.fake_resnets import weights

GOLDENS = load_file(Path(__file__).parents[1] / "data" / "audioclip.safetensors")
RATE = 44_100
AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@lru_cache
def encoder(dtype: torch.dtype = torch.float32, amplitude: str = "int16") -> AudioCLIPEncoder:
    return AudioCLIPEncoder(weights("audioclip"), AudioCLIPOptions(dtype=dtype, amplitude=amplitude))


def fbsp() -> FBSP:
    """A fresh transform with the drawn filters."""
    state = {name: tensor for name, tensor in weights("audioclip").items() if name.startswith("audio.fbsp.")}
    transform = FBSP()
    transform.load_state_dict({name.removeprefix("audio.fbsp."): tensor for name, tensor in state.items()})
    return transform


def noise(samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, samples)).astype(np.float32)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).norm() <= tolerance * b.norm()


@lru_cache
def reference_kernel() -> np.ndarray:
    """(1025, 2048) complex, in float64, from the description."""
    m, fb, fc = (weights("audioclip")[f"audio.fbsp.{part}"].double().numpy() for part in ("m", "fb", "fc"))
    time = np.pi * np.linspace(-1, 1, 2048) + 1e-8
    rows = []
    for exponent, bandwidth, frequency in zip(m, fb, fc, strict=True):
        envelope = np.sinc(bandwidth * time / (exponent + 1e-8) / np.pi).astype(complex) ** exponent
        rows.append(np.sqrt(bandwidth) * envelope * np.exp(-1j * frequency * time) / np.sqrt(2048))
    return np.stack(rows)


def reference(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a sound in 16-bit range: (frames, 1025) complex spectrum, and (3, 341, frames) dB."""
    one = np.float32
    scaled = ((samples + one(32768)) * one(2)) / one(65535) + one(-1)  # this alone is float32 on purpose
    frames = 1 if len(samples) < 1654 else 1 + math.ceil((len(samples) - 1654) / 561)
    missing = 1654 + 561 * (frames - 1) - len(samples)
    front = np.zeros(missing // 2)
    signal = np.concatenate([front, scaled.astype(np.float64), np.zeros(missing - len(front))])
    angle = 2 * np.pi * np.arange(1654) / 1654
    window = 0.35875 - 0.48829 * np.cos(angle) + 0.14128 * np.cos(2 * angle) - 0.01168 * np.cos(3 * angle)
    spectrum = []
    for i in range(frames):
        frame = np.zeros(2048)
        frame[197 : 197 + 1654] = window * signal[561 * i : 561 * i + 1654]
        spectrum.append(reference_kernel() @ frame)
    power = np.abs(np.stack(spectrum)) ** 2
    levels = 10 * np.log10(np.where(power == 0, 1e-18, power))
    return np.stack(spectrum), levels.T[:1023].reshape(3, 341, frames)


def sounds() -> list[np.ndarray]:
    """Mono sounds in 16-bit range: several frames, hardly one more than one, less than one, one sample."""
    return [np.float32(32768) * noise(samples, samples)[0] for samples in (4000, 1655, 900, 1)]


def check_kernel() -> None:
    rows = fbsp().kernel[[0, 1, 100, 512, 1024]][:, ::64]
    assert_close(rows, GOLDENS["kernel_columns"], 1e-3)
    if AVX2:
        assert torch.equal(rows, GOLDENS["kernel_columns"])


def check_spectrum() -> None:
    transform = fbsp()
    for samples in sounds():
        spectrum, _ = reference(samples)
        ours = torch.view_as_complex(transform(cut(scale(torch.from_numpy(samples))) * transform.window))
        assert np.linalg.norm(ours.numpy() - spectrum) < 5e-4 * np.linalg.norm(spectrum)


def check_frontend() -> None:
    transform = fbsp()
    for samples in sounds():
        _, levels = reference(samples)
        ours = transform.frontend(torch.from_numpy(samples)).numpy()
        assert ours.shape == (3, 341, frame_count(len(samples))) == levels.shape
        assert np.abs(ours - levels).mean() < 0.01


def check_scale() -> None:
    x = torch.tensor([0.0, 1.0, -32768.0, 32767.0, 0.3, 1e-5])
    expected = [1.52587890625e-05, 4.57763671875e-05, -1.0, 1.0]
    assert fbsp_module.scale(x)[:4].tolist() == pytest.approx(expected, rel=1e-6)
    assert fbsp_module.scale(x)[5] == fbsp_module.scale(x)[0]  # lost beside 32768


def check_silence() -> None:
    """The constant that scale() makes of 0 is far above the rounding noise at 0 Hz."""
    transform = fbsp()
    frame = cut(fbsp_module.scale(torch.zeros(3000)))[1:2] * transform.window
    golden = GOLDENS["silence_2s/spectrum"][:1]
    assert_close(transform(frame), golden, 5e-4)


def check_network() -> None:
    for case in ("short_0.4s", "short_20ms"):
        pooled = encoder().audio(GOLDENS[f"{case}/frontend"])
        assert_close(pooled[0], GOLDENS[f"{case}/pooled"], 5e-5)
        assert_close(encoder().audio.project(pooled)[0], GOLDENS[f"{case}/embedding"], 5e-5)


def check_channels() -> None:
    stereo = noise(3000, channels=2)
    features = [encoder().audio(encoder()._frontend(channel)[None]) for channel in stereo]
    fc = encoder().audio.fc
    assert_close(encoder().embed([stereo], RATE), F.linear(features[0] + features[1], fc.weight, fc.bias))


def check_amplitude() -> None:
    samples = noise(2000)[0]
    for amplitude, factor in (("int16", 32768), ("unit", 1)):
        _, levels = reference(np.float32(factor) * samples)
        ours = encoder(amplitude=amplitude)._frontend(samples).numpy()
        assert np.abs(ours - levels).mean() < 0.02


CHECKS = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.mark.parametrize("check", CHECKS)
def test_as_the_original(check):
    CHECKS[check]()


def zeros_at_the_end(monkeypatch):
    def behind(signal: Tensor) -> Tensor:
        missing = (frame_count(len(signal)) - 1) * 561 + 1654 - len(signal)
        return F.pad(signal, (0, missing)).unfold(0, 1654, 561)

    monkeypatch.setattr(fbsp_module, "cut", behind)


def frames_filled_on_one_side(monkeypatch):
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, sides: pad(x, (0, 394) if sides == (197, 197) else sides))


def absolute_sinc(monkeypatch):
    monkeypatch.setattr(fbsp_module, "power", lambda base, m: (base.abs() ** m, torch.zeros_like(base)))


def float64_kernel(monkeypatch):
    make = fbsp_module.make_kernel
    monkeypatch.setattr(
        fbsp_module,
        "make_kernel",
        lambda *filters: make(*(part.double() for part in filters)).float(),
    )
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, dtype=None: linspace(*args, dtype=torch.float64))


def average_for_maximum(monkeypatch):
    monkeypatch.setattr(F, "adaptive_max_pool2d", F.adaptive_avg_pool2d)


def mean_of_the_channels(monkeypatch):
    project = AudioTower.project
    monkeypatch.setattr(AudioTower, "project", lambda self, pooled: project(self, pooled / 2))


def channels_averaged_before(monkeypatch):
    embed = AudioCLIPEncoder._embed
    monkeypatch.setattr(
        AudioCLIPEncoder, "_embed", lambda self, x: embed(self, [w.mean(axis=0, keepdims=True) for w in x])
    )


def no_32768(monkeypatch):
    monkeypatch.setattr(
        AudioCLIPEncoder, "_frontend", lambda self, x: self.audio.fbsp.frontend(torch.from_numpy(x))
    )


def division_for_scale(monkeypatch):
    monkeypatch.setattr(fbsp_module, "scale", lambda x: x / 32768)


def symmetric_window(monkeypatch):
    def symmetric() -> Tensor:
        angle = torch.linspace(0, 2 * math.pi, 1654, dtype=torch.float64)
        terms = (0.35875, -0.48829, 0.14128, -0.01168)
        return torch.stack([term * torch.cos(k * angle) for k, term in enumerate(terms)]).sum(0).float()

    monkeypatch.setattr(fbsp_module, "blackman_harris", symmetric)


def top_filters_for_the_lowest(monkeypatch):
    frontend = FBSP.frontend
    monkeypatch.setattr(FBSP, "frontend", lambda self, x: frontend(self, x).flip(0))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (zeros_at_the_end, "frontend"),
        (frames_filled_on_one_side, "spectrum"),
        (frames_filled_on_one_side, "frontend"),
        (absolute_sinc, "kernel"),
        (absolute_sinc, "frontend"),
        pytest.param(float64_kernel, "kernel", marks=pytest.mark.skipif(not AVX2, reason="other rounding")),
        (average_for_maximum, "network"),
        (mean_of_the_channels, "channels"),
        (channels_averaged_before, "channels"),
        (no_32768, "amplitude"),
        (division_for_scale, "scale"),
        (division_for_scale, "silence"),
        (symmetric_window, "spectrum"),
        (top_filters_for_the_lowest, "frontend"),
    ],
)
def test_mistakes_are_caught(monkeypatch, mistake, check):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()


def test_window():
    signal = pytest.importorskip("scipy.signal")
    window = signal.get_window("blackmanharris", 1654, fftbins=True)
    assert np.abs(blackman_harris().numpy() - window).max() < 1e-7


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1654, 1), (1655, 2), (2215, 2), (2216, 3)])
def test_frames(samples, frames):
    signal = torch.arange(1.0, samples + 1)
    rows = cut(signal)
    assert rows.shape == (frames, 1654)
    missing = 1654 + 561 * (frames - 1) - samples
    front = missing // 2
    assert (rows[0, :front] == 0).all()
    assert rows[0, front] == 1
    assert (rows[-1, 1654 - (missing - front) :] == 0).all()
    assert rows[-1, 1654 - (missing - front) - 1] == samples


def test_frames_in_parts_are_the_whole(monkeypatch):
    transform, samples = fbsp(), torch.from_numpy(sounds()[0])
    whole = transform.frontend(samples)
    monkeypatch.setattr(fbsp_module, "_FRAMES_AT_ONCE", 2)
    assert (transform.frontend(samples) - whole).abs().mean() < 0.01


def test_power_of_zero_is_finite():
    assert fbsp_module.decibels(torch.zeros(1, 2, 2)).tolist() == [[-180.0, -180.0]]
    assert fbsp_module.decibels(torch.full((1, 1, 2), 1e-15)).item() < -180


def test_a_batch_is_single_runs():
    mixed = [noise(4000), noise(1), noise(3000, channels=2), np.zeros((1, 2900), np.float32), noise(4001)]
    mixed += [noise(4000, 1), np.zeros((1, 4000), np.float32)]
    batch = encoder().embed(mixed, RATE)
    assert batch.isfinite().all()
    for vector, sound in zip(batch, mixed, strict=True):
        assert_close(vector, encoder().embed([sound], RATE)[0])


def test_silence():
    silence = encoder().embed([np.zeros(88_200, np.float32)], RATE)[0]
    assert_close(silence, GOLDENS["silence_2s/embedding"], 0.15)
    assert torch.equal(silence, encoder().embed([np.zeros(88_200, np.float32)], RATE)[0])


def test_long_sounds_are_windows(monkeypatch):
    """One second each here; the rest counts by its samples, and channels are summed in every window."""
    monkeypatch.setattr(module, "_WINDOW", 10_000)
    sound = noise(22_500, channels=2)
    parts = encoder().embed([sound[:, :10_000], sound[:, 10_000:20_000], sound[:, 20_000:]], RATE)
    mean = (4 * parts[0] + 4 * parts[1] + parts[2]) / 9
    long, short = encoder().embed([sound, sound[:, :10_000]], RATE)
    assert_close(long, mean)
    assert_close(short, parts[0])


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.float16, 0.999), (torch.bfloat16, 0.99)])
def test_lower_precision(dtype, cosine):
    low = encoder(dtype)
    dtypes = {name: tensor.dtype for name, tensor in low.state_dict().items()}
    assert {kind for name, kind in dtypes.items() if "fbsp" not in name} == {dtype}
    assert {kind for name, kind in dtypes.items() if "fbsp" in name} == {torch.float32}
    assert torch.equal(low.audio.fbsp.kernel, encoder().audio.fbsp.kernel)
    tested = [noise(3000), noise(500), np.zeros(3000, np.float32)]
    vectors = low.embed(tested, RATE)
    assert vectors.dtype == torch.float32
    assert F.cosine_similarity(vectors, encoder().embed(tested, RATE)).min() > cosine


def test_the_transform_stays_in_float32():
    transform = fbsp().half().to(torch.bfloat16).to("cpu")
    assert {tensor.dtype for tensor in (*transform.parameters(), *transform.buffers())} == {torch.float32}
    assert torch.equal(transform.kernel, fbsp().kernel)


def test_other_filters_give_another_kernel():
    transform = copy.deepcopy(pickle.loads(pickle.dumps(fbsp())))
    before = transform.kernel
    transform.load_state_dict({**transform.state_dict(), "fc": transform.fc + 0.1})
    assert not torch.equal(transform.kernel, before)
    assert set(transform.state_dict()) == {"m", "fb", "fc", "bias"}


def test_what_an_encoder_says_of_itself():
    tested = encoder(amplitude="unit")
    assert (tested.name, tested.sampling_rate, tested.dim) == ("audioclip", RATE, 1024)
    assert tested.checkpoint == encoder().checkpoint
    assert tested.signature() == {
        "encoder": "audioclip",
        "checkpoint": tested.checkpoint,
        "amplitude": "unit",
    }
    assert encoder().signature()["amplitude"] == "int16"
    assert tested.card.dim == "1024"


def test_training_mode_changes_nothing():
    fresh = AudioCLIPEncoder(weights("audioclip")).train()
    assert torch.equal(fresh.embed([noise(3000)], RATE), encoder().embed([noise(3000)], RATE))
