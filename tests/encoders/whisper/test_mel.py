"""The log-mel spectrogram against both libraries' own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip.encoders.whisper.mel import log_mel, token_count

LENGTHS = [1, 159, 160, 161, 320, 321, 12_345, 48_000, 479_700, 479_961, 480_000]


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudest sample is the last one: the frames behind the end matter most."""
    noise = np.random.default_rng(seed).normal(size=samples) * np.linspace(0.01, 0.1, samples)
    noise[-1] = 0.9
    return noise.astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("samples", LENGTHS)
def test_equals_openai_whisper(samples, n_mels):
    whisper = pytest.importorskip("whisper")
    waveform = torch.from_numpy(sound(samples))
    theirs = whisper.log_mel_spectrogram(whisper.pad_or_trim(waveform), n_mels=n_mels)
    assert (log_mel(waveform, n_mels) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("samples", [321, 48_000])
def test_equals_transformers(samples, n_mels):
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    theirs = extractor(
        sound(samples), sampling_rate=16_000, return_tensors="pt", device="cpu"
    ).input_features[0]
    assert (log_mel(torch.from_numpy(sound(samples)), n_mels) - theirs).abs().max() < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 480_000), st.integers(0, 9))
def test_a_part_is_a_part_of_the_whole(samples, seed):
    waveform = torch.from_numpy(sound(samples, seed))
    whole = log_mel(waveform, 80)
    frames = min(2 * token_count(samples) + 1, 3000)
    assert whole.shape == (80, 3000)
    assert torch.equal(log_mel(waveform, 80, frames), whole[:, :frames])


def test_silence():
    assert torch.equal(log_mel(torch.zeros(48_000), 80), torch.full((80, 3000), -1.5))


@pytest.mark.parametrize(
    ("samples", "tokens"), [(1, 1), (320, 1), (321, 2), (48_000, 150), (480_000, 1500), (480_001, 1500)]
)
def test_token_count(samples, tokens):
    assert token_count(samples) == tokens
