"""Against the golden outputs of openai-whisper on real clips, in ../shared/parity."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava_soundclip.encoders.whisper.encoder import WhisperCLIPEncoder, WhisperCLIPOptions
from llava_soundclip.encoders.whisper.mel import log_mel, token_count
from tests.encoders.fake_whisper import weights
from tests.encoders.parity import Goldens, frontend_stages

pytestmark = pytest.mark.parity

GOLDENS = Goldens("whisper")
# The larger model, and the tiny one's longer sounds, add seconds and little that the others don't show.
SLOW = ("base-jfk", "base-frog", "base-crying_baby_3s", "tiny-long_33s", "tiny-siren", "tiny-bird_stereo")


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@lru_cache(maxsize=2)
def encoder(size: str, backend: str) -> WhisperCLIPEncoder:
    dims = GOLDENS.specification["dimensions"][size]
    sizes = dims["n_audio_state"], dims["n_audio_layer"], dims["n_audio_head"]
    return WhisperCLIPEncoder(weights(*sizes), WhisperCLIPOptions(backend=backend, long="trim"))


def stages(name: str, backend: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    (samples,) = GOLDENS.sound(name)
    tokens = token_count(len(samples))
    assert tokens == GOLDENS.cases[name]["valid_tokens"]
    tested = encoder(GOLDENS.cases[name]["size"], backend)
    tested.window = "padded"
    mel = log_mel(torch.from_numpy(samples[:480_000]), 80)
    states = list(tested.tower.states(mel[None], 1500))
    values = {
        **frontend_stages(mel),
        "frontend_valid": mel[:, : 2 * tokens],
        "tokens": torch.stack([state[0, [0, tokens - 1, 1499]] for state in states]),
    }
    for pooling, count in (("all", 1500), ("valid", tokens)):
        tested.pooling = pooling
        *rows, last = tested._means([samples[None]])[0]
        blocks = torch.stack(rows)
        values[f"embed_mean.{pooling}"] = states[0][0, :count].mean(0)
        values[f"layer_means.{pooling}"] = blocks
        values[f"ln_post_mean.{pooling}"] = values[f"final_only_ln_post.{pooling}"] = last
        values[f"average_all_ln_post.{pooling}"] = torch.stack([*rows[:-1], last]).mean(0)
        for fusion, n in (
            *((fusion, None) for fusion in ("average_all", "final_only", "middle_only")),
            *(("last_n", n) for n in (1, 2, 3)),
        ):
            tested.set_fusion(fusion, n)
            values[f"last_{n}.{pooling}" if n else f"{fusion}.{pooling}"] = tested.fuse(blocks[None])[0]
    tested.pooling, tested.window = "valid", "clip"
    values["alone.layer_means"] = tested._means([samples[None]])[0, :-1]
    values["alone.average_all"] = values["alone.layer_means"].mean(0)
    return values


@pytest.mark.parametrize("backend", ["transformers", "openai"])
@pytest.mark.parametrize("name", GOLDENS.parameters(*SLOW))
def test_every_stage(name, backend):
    if backend == "openai":
        pytest.importorskip("whisper")
    ours = stages(name, backend)
    for stage in GOLDENS.cases[name]["stages"]:
        GOLDENS.check(name, stage, ours[stage])


@pytest.mark.parametrize("size", GOLDENS.specification.get("dimensions", {}))
def test_the_drawn_weights_are_the_goldens(size):
    drawn = encoder(size, "transformers").tower
    for entry in GOLDENS.specification["state_dict"][size]:
        if entry["name"].startswith("encoder."):
            value = drawn.encoder.state_dict()[entry["hf_name"].removeprefix("encoder.")]
            assert list(value.shape) == entry["shape"], entry["name"]
            assert value.flatten()[0].item() == pytest.approx(entry["first"], abs=1e-6), entry["name"]
            assert value.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6), entry[
                "name"
            ]
