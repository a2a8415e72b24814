"""Wav2CLIP: its spectrogram against a slow one, its network against the original's numbers, any sound and length.

`data/wav2clip.safetensors` holds what the original (commit 1864b39) gave for 0.4 s of a real sound and for the
weights of `fake_resnets`.
"""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llava_soundclip.encoders import wav2clip as module
from llava_soundclip.encoders.wav2clip import Wav2CLIPEncoder, Wav2CLIPOptions, frontend, log_power, normalise
from tests.encoders.fake_resnets import weights

GOLDENS = load_file(Path(__file__).parent / "data" / "wav2clip.safetensors")
RATE = 16_000


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@lru_cache
def encoder(dtype: torch.dtype = torch.float32) -> Wav2CLIPEncoder:
    return Wav2CLIPEncoder(weights("wav2clip"), Wav2CLIPOptions(dtype=dtype))


def noise(samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, samples)).astype(np.float32)


def fading_chirp(samples: int = 8000) -> np.ndarray:
    """Loud at its start, below the floor at its end."""
    time = np.arange(samples) / RATE
    return (0.1 * np.cos(2 * np.pi * (300 * time + 5000 * time**2)) * np.exp(-24 * time)).astype(np.float32)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).norm() <= tolerance * b.norm()


def reference(mono: np.ndarray) -> np.ndarray:
    """(257, frames) in float64, from the description."""
    signal = mono.astype(np.float64)
    signal = np.concatenate([signal[256:0:-1], signal, signal[-2:-258:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = 1 + len(mono) // 353
    spectra = [np.fft.rfft(window * signal[353 * i : 353 * i + 512]) for i in range(frames)]
    levels = np.log(np.abs(np.stack(spectra, axis=1)) ** 2 + 1e-7)
    return (levels - levels.mean()) / (levels.std(ddof=1) + 1e-9)


def check_frontend() -> None:
    for mono in (fading_chirp(), noise(257)[0], noise(706)[0]):
        ours = frontend(mono[None])
        assert ours.shape == (1, 257, 1 + len(mono) // 353)
        assert np.abs(ours[0].numpy() - reference(mono)).max() < 1e-3


def check_batch() -> None:
    sounds = [noise(8000), 0.01 * noise(8000, 1), fading_chirp()[None], noise(300), noise(8001, 2)]
    batch = encoder().embed(sounds, RATE)
    for vector, sound in zip(batch, sounds, strict=True):
        assert_close(vector, encoder().embed([sound], RATE)[0])


def check_network() -> None:
    pooled = encoder()._pool(GOLDENS["frontend"])
    assert_close(pooled[0], GOLDENS["encoder"], 5e-5)
    assert_close(encoder()._project(pooled)[0], GOLDENS["embedding"], 5e-5)


CHECKS = {"frontend": check_frontend, "batch": check_batch, "network": check_network}


@pytest.mark.parametrize("check", CHECKS)
def test_as_the_original(check):
    CHECKS[check]()


def symmetric_window(monkeypatch):
    monkeypatch.setattr(torch, "hann_window", partial(torch.hann_window, periodic=False))


def floor_by_clamp(monkeypatch):
    monkeypatch.setattr(
        module, "log_power", lambda mono: (log_power(mono).exp() - 1e-7).clamp(min=1e-7).log()
    )


def zeros_for_the_reflection(monkeypatch):
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, sides, mode="constant": pad(x, sides))


def power_1(monkeypatch):
    def magnitude(mono: Tensor) -> Tensor:
        return ((log_power(mono).exp() - 1e-7).clamp(min=0).sqrt() + 1e-7).log()

    monkeypatch.setattr(module, "log_power", magnitude)


def statistics_of_the_batch(monkeypatch):
    pool = Wav2CLIPEncoder._pool
    monkeypatch.setattr(
        module, "frontend", lambda x: log_power(F.pad(torch.from_numpy(x[0]), (0, 257)))[None]
    )
    monkeypatch.setattr(Wav2CLIPEncoder, "_pool", lambda self, batch: pool(self, normalise(batch)))


def maximum_for_the_mean(monkeypatch):
    monkeypatch.setattr(
        Wav2CLIPEncoder, "_pool", lambda self, batch: self.audio_encoder(batch).amax(dim=(2, 3))
    )


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (symmetric_window, "frontend"),
        (floor_by_clamp, "frontend"),
        (zeros_for_the_reflection, "frontend"),
        (power_1, "frontend"),
        (statistics_of_the_batch, "batch"),
        (maximum_for_the_mean, "network"),
    ],
)
def test_mistakes_are_caught(monkeypatch, mistake, check):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()


@pytest.mark.parametrize("samples", [1, 8000, 80_000])
def test_silence(samples):
    spectrogram = frontend(np.zeros((1, samples), np.float32))
    assert torch.equal(spectrogram, torch.zeros_like(spectrogram))
    # The two channels cancel out.
    assert torch.equal(frontend(noise(400) * np.array([[1], [-1]], np.float32)), torch.zeros(1, 257, 2))
    vector, other = encoder().embed([np.zeros(samples, np.float32), noise(500)], RATE)
    assert vector.isfinite().all()
    assert_close(vector, encoder().embed([np.zeros(samples, np.float32)], RATE)[0])
    assert (vector - other).norm() > 0.01 * other.norm()


def test_short_sounds_end_in_zeros():
    for samples in (1, 256):
        sound = noise(samples)
        filled = np.pad(sound, ((0, 0), (0, 257 - samples)))
        assert torch.equal(encoder().embed([sound], RATE), encoder().embed([filled], RATE))


def test_channels_are_averaged():
    stereo = noise(5000, channels=2)
    assert torch.equal(encoder().embed([stereo], RATE), encoder().embed([stereo.mean(axis=0)], RATE))


@pytest.mark.parametrize("frames", [64, 65, 96, 97, 128, 129, 500])
def test_pieces_are_the_whole(monkeypatch, frames):
    """Also where the last piece is shorter than the network's reach."""
    sound = noise(353 * (frames - 1), seed=frames)
    whole_spectrogram, whole = frontend(sound), encoder().embed([sound], RATE)
    assert whole_spectrogram.shape[-1] == frames
    monkeypatch.setattr(module, "_FRAMES_AT_ONCE", 64)
    assert torch.allclose(frontend(sound), whole_spectrogram, atol=1e-5)
    assert_close(encoder().embed([sound], RATE), whole)


def test_a_halo_too_small_is_seen(monkeypatch):
    sound = noise(353 * 499)
    whole = encoder().embed([sound], RATE)
    monkeypatch.setattr(module, "_FRAMES_AT_ONCE", 64)
    monkeypatch.setattr(module, "_HALO", 64)
    with pytest.raises(AssertionError):
        assert_close(encoder().embed([sound], RATE), whole)


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.float16, 0.99999), (torch.bfloat16, 0.9999)])
def test_lower_precision(dtype, cosine):
    low = encoder(dtype)
    assert {tensor.dtype for tensor in low.state_dict().values()} == {dtype}
    sounds = [fading_chirp(), noise(4000), np.zeros(4000, np.float32)]
    vectors = low.embed(sounds, RATE)
    assert vectors.dtype == torch.float32
    assert F.cosine_similarity(vectors, encoder().embed(sounds, RATE)).min() > cosine


def test_what_an_encoder_says_of_itself():
    assert (encoder().name, encoder().sampling_rate, encoder().dim) == ("wav2clip", RATE, 512)
    assert encoder().signature() == {"encoder": "wav2clip", "checkpoint": encoder().checkpoint}
    assert encoder().card.dim == "512"
    assert encoder().checkpoint.startswith("wav2clip-")


def test_training_mode_changes_nothing():
    fresh = Wav2CLIPEncoder(weights("wav2clip")).train()
    assert torch.equal(fresh.embed([noise(3000)], RATE), encoder().embed([noise(3000)], RATE))


@pytest.mark.slow
def test_minutes_of_sound():
    sound = np.tile(fading_chirp(), 300)  # 150 s: two pieces, as they are
    spectrogram = frontend(sound[None])
    whole = encoder().audio_encoder(spectrogram[None]).mean(dim=(2, 3))
    assert_close(encoder()._pool(spectrogram[None]), whole)
