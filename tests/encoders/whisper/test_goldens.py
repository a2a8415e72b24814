"""Against openai-whisper's own numbers, stored beside; and the usual mistakes, which must be caught."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llava_soundclip.encoders.whisper import encoder as module
from llava_soundclip.encoders.whisper import mel as mel_module
from llava_soundclip.encoders.whisper.encoder import WhisperEncoder, WhisperOptions
from llava_soundclip.encoders.whisper.mel import log_mel
from llava_soundclip.encoders.whisper.towers import TransformersTower
from tests.encoders.fake_whisper import GOLDEN_SIZES, golden_sound, weights

GOLDENS = load_file(Path(__file__).parents[1] / "data" / "whisper.safetensors")
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("valid", {"pooling": "valid"}),
    ("all", {"pooling": "all"}),
    ("clip", {"window": "clip"}),
]


def assert_close(ours: Tensor, golden: Tensor) -> None:
    assert (ours - golden).norm() / golden.norm() < 2e-5


def compare(case: str, run: str, options: dict[str, Any], backend: str) -> None:
    """Every block's mean, and the last one's after the final LayerNorm."""
    sound, sizes = GOLDEN_SIZES[case]
    encoder = WhisperEncoder(weights(**sizes), WhisperOptions(backend=backend, long="trim", **options))
    means = encoder._means([golden_sound(sound)[None]])[0]
    assert_close(means[:-1], GOLDENS[f"{case}/layer_means.{run}"])
    assert_close(means[-1], GOLDENS[f"{case}/ln_post_mean.{run}"])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("backend", ["transformers", "openai"])
@pytest.mark.parametrize(("run", "options"), RUNS)
@pytest.mark.parametrize("case", GOLDEN_SIZES)
def test_means(case, run, options, backend):
    if backend == "openai":
        pytest.importorskip("whisper")
    compare(case, run, options, backend)


@pytest.mark.parametrize("case", GOLDEN_SIZES)
def test_mel(case):
    sound, sizes = GOLDEN_SIZES[case]
    mel = log_mel(torch.from_numpy(golden_sound(sound)[:480_000]), sizes.get("n_mels", 80))
    golden = GOLDENS[f"{case}/mel"]
    assert (mel[:, : golden.shape[1]] - golden).abs().max() < 2e-4
    assert (mel[:, -1] - GOLDENS[f"{case}/mel_last"]).abs().max() < 2e-4


def symmetric_window(monkeypatch):
    monkeypatch.setattr(torch, "hann_window", partial(torch.hann_window, periodic=False))


def htk_filters(monkeypatch):
    from transformers import audio_utils

    def filters(**options: Any) -> np.ndarray:
        return original(**{**options, "mel_scale": "htk"})

    original = audio_utils.mel_filter_bank
    monkeypatch.setattr(audio_utils, "mel_filter_bank", filters)
    monkeypatch.setattr(mel_module, "_mel_filters", mel_module._mel_filters.__wrapped__)


def mel_of_the_bare_clip(monkeypatch):
    def bare(waveform: Tensor, n_mels: int, frames: int = 3000) -> Tensor:
        spectrum = torch.stft(waveform, 400, 160, window=torch.hann_window(400), return_complex=True)
        mel = mel_module._mel_filters(n_mels) @ spectrum[:, :-1].abs() ** 2
        mel = F.pad(mel, (0, max(frames - mel.shape[1], 0)))[:, :frames].clamp(min=1e-10).log10()
        return (mel.maximum(mel.max() - 8.0) + 4.0) / 4.0

    monkeypatch.setattr(module, "log_mel", bare)


def last_block_after_the_norm(monkeypatch):
    def states(self, mel: Tensor, tokens: int):
        *blocks, last = original(self, mel, tokens)
        yield from blocks
        yield self.ln_post(last)

    original = TransformersTower.states
    monkeypatch.setattr(TransformersTower, "states", states)


def one_token_too_few(monkeypatch):
    monkeypatch.setattr(module, "token_count", lambda samples: min(max(samples // 320, 1), 1499))


def sinusoids_recomputed(monkeypatch):
    def positions(self) -> Tensor:
        width = self.encoder.layer_norm.weight.shape[0]
        rates = torch.exp(-np.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
        angles = torch.arange(1500)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    monkeypatch.setattr(TransformersTower, "positions", property(positions))


def tanh_gelu(monkeypatch):
    monkeypatch.setattr(F, "gelu", partial(F.gelu, approximate="tanh"))


def one_frame_too_few(monkeypatch):
    def shorter(waveform: Tensor, n_mels: int, frames: int = 3000) -> Tensor:
        return log_mel(waveform, n_mels, frames - frames % 2)

    monkeypatch.setattr(module, "log_mel", shorter)


def no_positions(monkeypatch):
    monkeypatch.setattr(TransformersTower, "positions", property(lambda self: torch.zeros(1500, 1)))


@pytest.mark.parametrize(
    ("mistake", "run", "case"),
    [
        (symmetric_window, "valid", "chirp"),
        (htk_filters, "valid", "chirp"),
        (mel_of_the_bare_clip, "clip", "click"),
        (last_block_after_the_norm, "valid", "chirp"),
        (one_token_too_few, "valid", "click"),
        (sinusoids_recomputed, "valid", "silence"),
        (no_positions, "valid", "silence"),
        (tanh_gelu, "valid", "chirp"),
        (one_frame_too_few, "clip", "click"),
    ],
)
def test_mistakes_are_caught(monkeypatch, mistake, run, case):
    compare(case, run, dict(RUNS)[run], "transformers")
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        compare(case, run, dict(RUNS)[run], "transformers")
