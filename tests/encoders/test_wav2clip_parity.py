"""Against the golden outputs of the original Wav2CLIP on real clips, in ../shared/parity."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava_soundclip.encoders.wav2clip import Wav2CLIPEncoder, frontend, log_power, normalise
from tests.encoders.fake_resnets import weights
from tests.encoders.parity import Goldens, frontend_stages

pytestmark = pytest.mark.parity

GOLDENS = Goldens("wav2clip")


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@cache
def encoder() -> Wav2CLIPEncoder:
    return Wav2CLIPEncoder(weights("wav2clip"))


def stages(name: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    sound = GOLDENS.sound(name)
    values = {"waveform_first": torch.from_numpy(sound[0, :2000])}
    if name == "stereo_as_batch":  # the original's statistics are over the batch, ours never
        spectrograms = normalise(torch.stack([log_power(channel) for channel in torch.from_numpy(sound)]))
        spectrograms = spectrograms[:, None]
    else:
        spectrograms = frontend(sound)[None]
    pooled = encoder()._pool(spectrograms)
    vectors = encoder()._project(pooled)
    if name != "stereo_as_batch":
        values["embedding"] = encoder().embed([sound], 16_000)[0]
        assert torch.equal(values["embedding"], vectors[0])
        pooled = pooled[0]
    return {**values, **frontend_stages(spectrograms), "encoder": pooled, "embeddings": vectors}


@pytest.mark.parametrize("name", GOLDENS.parameters())
def test_every_stage(name):
    ours = stages(name)
    for stage in GOLDENS.stages(name):
        GOLDENS.check(name, stage, ours[stage])


@pytest.mark.parametrize("name", ["dog", "stereo_mono"])
def test_far_within_the_tolerance(name):
    """Where it was measured, 3e-7; what the tolerance lets through unseen, such as a biased std, does more."""
    golden = GOLDENS.stages(name)["embedding"]
    assert (stages(name)["embedding"] - golden).norm() <= 4e-6 * golden.norm()


def test_the_drawn_weights_are_the_goldens():
    drawn = encoder().state_dict()
    for entry in GOLDENS.specification["state_dict"]:
        if not entry["name"].endswith(("window", "num_batches_tracked")):
            value = drawn.pop(entry["name"])
            assert list(value.shape) == entry["shape"], entry["name"]
            assert value.flatten()[0].item() == pytest.approx(entry["first"], abs=1e-6), entry["name"]
            assert value.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6), entry[
                "name"
            ]
    assert not drawn
