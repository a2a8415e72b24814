"""Against the golden outputs of ImageBind on real clips, in ../shared/parity."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llava_soundclip.encoders.imagebind import ImageBindEncoder
from llava_soundclip.encoders.imagebind.fbank import SAMPLING_RATE, frontend
from llava_soundclip.encoders.imagebind.tower import ImageBindTower
from llava_soundclip.encoders.imagebind.weights import original_name
from tests.encoders.parity import Goldens, fill, frontend_stages

pytestmark = pytest.mark.parity

GOLDENS = Goldens("imagebind")
# These show nothing that others don't, and a network of 86 M parameters takes its time.
SLOW = ("bird", "thunder", "coughing", "esc50_dog", "clip_3s", "rate_48k")


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@lru_cache
def encoder() -> ImageBindEncoder:
    """The full size, with the goldens' weights."""
    with torch.device("meta"):
        tower = ImageBindTower(768, 12, 3072, 228, 1024)
    names = {name: original_name(name) for name in tower.state_dict()}
    empty = {names[name]: torch.empty(tensor.shape) for name, tensor in tower.state_dict().items()}
    drawn = fill(empty)
    tower.load_state_dict({ours: drawn[theirs] for ours, theirs in names.items()}, assign=True)
    return ImageBindEncoder(tower, "drawn").eval().requires_grad_(False)


def prepared(name: str) -> tuple[np.ndarray, int]:
    return GOLDENS.sound(name), GOLDENS.cases[name]["input"]["sampling_rate"]


def stages(name: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    sound, rate = prepared(name)
    tested = encoder()
    (at_16k,) = tested._prepare([sound], rate)
    banks = frontend(at_16k)
    tokens = tested.tower.tokens(banks)
    return {
        **frontend_stages(banks),
        "waveform_first": torch.from_numpy(at_16k[:, :2000]),
        "waveform_last": torch.from_numpy(at_16k[:, -2000:]),
        "tokens": tokens[:, :4],
        "trunk": tested.tower.trunk(tokens),
        "clips": tested.tower(banks),
        "embedding": tested.embed([sound], rate)[0],
    }


@pytest.mark.parametrize("name", GOLDENS.parameters(*SLOW))
def test_every_stage(name):
    ours = stages(name)
    assert GOLDENS.stages(name).keys() <= ours.keys()
    for stage in GOLDENS.stages(name):
        GOLDENS.check(name, stage, ours[stage])


def test_the_windows_are_the_originals():
    from llava_soundclip.encoders.imagebind.fbank import windows

    for case in GOLDENS.cases.values():
        assert [list(window) for window in windows(case["samples_16k"])] == case["windows"]
        sound, rate = prepared(case["name"])
        (at_16k,) = encoder()._prepare([sound], rate)
        assert at_16k.shape[1] == case["samples_16k"] and SAMPLING_RATE == 16_000


def test_the_drawn_weights_are_the_goldens():
    state = encoder().tower.state_dict()
    ours = {original_name(name): tensor for name, tensor in state.items()}
    entries = GOLDENS.specification["state_dict"]
    assert {entry["name"] for entry in entries} == ours.keys()
    for entry in entries:
        value = ours[entry["name"]]
        assert list(value.shape) == entry["shape"], entry["name"]
        assert value.flatten()[0].item() == pytest.approx(entry["first"], abs=1e-6), entry["name"]
