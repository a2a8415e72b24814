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
