"""The table of names, and what every encoder in it must keep."""

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch

from llava_soundclip import encoders
from llava_soundclip.encoders import AudioEncoder, available_encoders, load_encoder, register_encoder
from llava_soundclip.encoders.base import AudioEncoder as Base
from tests.conftest import TinyEncoder
from tests.encoders.fake_clap import write_clap
from tests.encoders.fake_imagebind import write_pth as write_imagebind
from tests.encoders.fake_resnets import write_audioclip, write_wav2clip
from tests.encoders.fake_whisper import weights, write_openai

# A new encoder gets its line here: how to make a small checkpoint of it.
CHECKPOINTS: dict[str, Any] = {
    "audioclip": write_audioclip,
    "clap": lambda folder: write_clap(folder / "tiny.pt"),
    "imagebind": lambda folder: write_imagebind(folder / "imagebind_huge.pth"),
    "wav2clip": write_wav2clip,
    "whisper": lambda folder: write_openai(folder / "tiny.pt", weights()),
    "whisperclip": lambda folder: write_openai(folder / "tiny.pt", weights()),
}


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))


def test_built_in_names():
    assert set(available_encoders()) >= set(CHECKPOINTS)
    assert available_encoders() == sorted(available_encoders())
    assert set(encoders._ENCODERS) == set(CHECKPOINTS), "an encoder without a line in CHECKPOINTS"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_encoder_keeps_the_contract(name, tmp_path):
    encoder = load_encoder(name, checkpoint=CHECKPOINTS[name](tmp_path))
    assert_keeps_the_contract(encoder, name)


@pytest.mark.filterwarnings(
    "ignore:.*non-meta parameter in the checkpoint:UserWarning"
)  # CLAP's float32 norm
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_no_sounds_give_no_vectors_on_the_encoders_device(name, tmp_path):
    encoder = load_encoder(name, checkpoint=CHECKPOINTS[name](tmp_path))
    assert encoder.embed([], 16_000).device.type == "cpu"
    moved = encoder.to("meta")  # a device that every machine has
    assert moved.embed([], 16_000).shape == (0, encoder.dim)
    assert moved.embed([], 16_000).device.type == "meta"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_half_precision(name, dtype, tmp_path):
    """The bounds that an encoder states are tested beside it; these are of the networks made here."""
    checkpoint = CHECKPOINTS[name](tmp_path)
    whole, half = (load_encoder(name, checkpoint=checkpoint, dtype=kind) for kind in (None, dtype))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert getattr(torch, dtype) in {p.dtype for p in half.parameters()}
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    ours, rounded = (encoder.embed([sound], 16_000) for encoder in (whole, half))
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(ours, rounded).item() > 0.99


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_options_are_checked_before_anything_is_read(name, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read"))
    with pytest.raises(ValueError, match="dtype='int8' is unknown; known: float32, float16, bfloat16"):
        load_encoder(name, checkpoint="no/such/thing", dtype="int8")
    with pytest.raises(FileNotFoundError, match="/nowhere/model.pt"):
        load_encoder(name, checkpoint="/nowhere/model.pt")
    with pytest.raises(ValueError, match="give one of"):
        load_encoder(name, checkpoint="no such thing")
    with pytest.raises(TypeError, match="ears"):
        load_encoder(name, ears=2)


def assert_keeps_the_contract(encoder: AudioEncoder, name: str) -> None:
    assert isinstance(encoder, AudioEncoder)
    assert encoder.name == name
    assert not encoder.training
    signature = encoder.signature()
    assert (signature["encoder"], signature["checkpoint"]) == (name, encoder.checkpoint)
    assert all(isinstance(value, str) for value in signature.values())

    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in (1, 777, (2, 16_000))]
    sounds.append(np.zeros(5000, np.float32))
    batch = encoder.embed(sounds, encoder.sampling_rate)
    assert (batch.shape, batch.dtype) == ((4, encoder.dim), torch.float32)
    assert batch.isfinite().all()
    for vector, sound in zip(batch, sounds, strict=True):
        torch.testing.assert_close(encoder.embed([torch.from_numpy(sound)], encoder.sampling_rate)[0], vector)
    assert encoder.embed(sounds, 44_100).shape == batch.shape

    louder = {
        "7.1 at 192 kHz": (rng.normal(0, 0.1, (8, 96_000)).astype(np.float32), 192_000),
        "8 kHz": (rng.normal(0, 0.1, 4000).astype(np.float32), 8_000),
        "clipped": (np.clip(rng.normal(0, 3, 16_000), -1, 1).astype(np.float32), 16_000),
        "above 1": (rng.normal(0, 1, 16_000).astype(np.float32), 16_000),
        "all offset": (np.full(16_000, 0.5, np.float32), 16_000),
    }
    for what, (sound, rate) in louder.items():
        assert encoder.embed([sound], rate).isfinite().all(), what
    broken = sounds[1].copy()
    broken[5] = np.nan
    with pytest.raises(ValueError, match="sound 1 holds NaN or infinity"):
        encoder.embed([sounds[1], broken], encoder.sampling_rate)
    assert encoder.embed([], encoder.sampling_rate).shape == (0, encoder.dim)
    rates = [8_000, 16_000, 44_100, 48_000]
    mixed = encoder.embed(sounds, rates)
    for vector, sound, rate in zip(mixed, sounds, rates, strict=True):
        torch.testing.assert_close(encoder.embed([sound], rate)[0], vector)
    with pytest.raises(ValueError, match="4 sounds and 2 sampling rates"):
        encoder.embed(sounds, rates[:2])


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown encoder 'ears'; known: .*whisper, whisperclip"):
        load_encoder("ears")


def test_a_registered_class():
    register_encoder("tiny", TinyEncoder)
    assert "tiny" in available_encoders()
    assert load_encoder("tiny", dim=3).dim == 3


def test_a_registered_path_is_imported_late():
    register_encoder("later", "no.such.module:Class")
    with pytest.raises(ModuleNotFoundError, match="no"):
        load_encoder("later")
    register_encoder("tiny", "tests.conftest:TinyEncoder")
    assert load_encoder("tiny").dim == 16


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'whisper' is registered already"):
        register_encoder("whisper", TinyEncoder)


def test_entry_points_of_other_packages(monkeypatch):
    point = EntryPoint("theirs", "tests.conftest:TinyEncoder", "llava_soundclip.encoders")
    monkeypatch.setattr(encoders, "entry_points", lambda group: [point] if group == point.group else [])
    assert "theirs" in available_encoders()
    assert isinstance(load_encoder("theirs"), TinyEncoder)
    with pytest.raises(ValueError, match="'theirs' is registered already"):
        register_encoder("theirs", TinyEncoder)


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Base()
