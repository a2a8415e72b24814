"""Against the golden outputs of openai-whisper on real clips, in ../shared/parity."""

import hashlib
import json
import wave
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava_soundclip.encoders.whisper import WhisperCLIPEncoder
from llava_soundclip.encoders.whisper_mel import log_mel, token_count
from tests.conftest import SHARED
from tests.encoders.fake_whisper import weights

pytestmark = pytest.mark.parity

PARITY = SHARED / "parity"
SPECIFICATION: dict[str, Any] = (
    json.loads((PARITY / "whisper.json").read_text()) if PARITY.is_dir() else {"cases": []}
)
CASES = {case["name"]: case for case in SPECIFICATION["cases"]}
# The larger model, and the tiny one's longer sounds, add seconds and little that the others don't show.
SLOW = {"base-jfk", "base-frog", "base-crying_baby_3s", "tiny-long_33s", "tiny-siren", "tiny-bird_stereo"}
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]


@pytest.fixture(autouse=True)
def no_grad(shared: Path):
    with torch.no_grad():
        yield


@lru_cache
def goldens() -> dict[str, Tensor]:
    return load_file(PARITY / "whisper.safetensors")


def read(file: Path) -> np.ndarray:
    """(channels, samples) float32 at the file's own rate."""
    if file.suffix == ".wav":
        with wave.open(str(file)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            return (samples.reshape(-1, sound.getnchannels()).T / np.float32(32_768)).astype(np.float32)
    import av

    with av.open(str(file)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels = container.streams.audio[0].channels
    joined = np.concatenate(frames, axis=1)
    scale = np.float32(2 ** (8 * joined.itemsize - 1))
    return (joined.reshape(-1, channels).T if len(joined) == 1 else joined) / scale


@lru_cache
def sound(name: str) -> np.ndarray:
    """(samples,) of a case, by the operations that its entry lists; the right samples, by their hash."""
    signal = pytest.importorskip("scipy.signal")
    x = np.zeros((1, 0), np.float32)
    for op in CASES[name]["ops"]:
        if op["op"] == "read":
            x = read(SHARED / op["file"])
        elif op["op"] == "zeros":
            x = np.zeros((1, op["samples"]), np.float32)
        elif op["op"] == "crop":
            x = x[:, op["start"] : op["stop"]]
        elif op["op"] == "mono":
            x = x.mean(axis=0, keepdims=True, dtype=np.float32)
        elif op["op"] == "resample_poly":
            x = signal.resample_poly(x.astype(np.float64), op["up"], op["down"], axis=1).astype(np.float32)
        elif op["op"] == "tile":
            x = np.tile(x, (1, op["n"]))
    samples = np.ascontiguousarray(x[0])
    assert (
        hashlib.sha256(samples.astype("<f4").tobytes()).hexdigest()
        == CASES[name]["input"]["sha256_float32_le"]
    )
    return samples


@lru_cache(maxsize=2)
def encoder(size: str, backend: str) -> WhisperCLIPEncoder:
    dims = SPECIFICATION["dimensions"][size]
    sizes = dims["n_audio_state"], dims["n_audio_layer"], dims["n_audio_head"]
    return WhisperCLIPEncoder(weights(*sizes), backend=backend, long="trim")


def stages(name: str, backend: str) -> dict[str, Tensor]:
    """Ours, under the goldens' names."""
    samples = sound(name)
    tokens = token_count(len(samples))
    assert tokens == CASES[name]["valid_tokens"]
    tested = encoder(CASES[name]["size"], backend)
    tested.window = "padded"
    mel = log_mel(torch.from_numpy(samples[:480_000]), 80)
    states = list(tested.tower.states(mel[None], 1500))
    statistics = [mel.double().mean(), mel.double().std(), mel.min().double(), mel.max().double()]
    values = {
        "frontend_valid": mel[:, : 2 * tokens],
        "frontend_first": mel[:, :8],
        "frontend_last": mel[:, -8:],
        "frontend_stats": torch.stack(statistics),
        "frontend_over_frequency": mel.mean(-2),
        "frontend_over_time": mel.mean(-1),
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
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_stage(name, backend):
    if backend == "openai":
        pytest.importorskip("whisper")
    ours = stages(name, backend)
    for stage in CASES[name]["stages"]:
        golden = goldens()[f"{name}/{stage}"]
        assert ours[stage].shape == golden.shape, stage
        difference = (ours[stage] - golden).double()
        if stage.startswith("frontend"):
            assert difference.abs().max() <= SPECIFICATION["tolerance"]["frontend"]["max_abs"], stage
        else:
            relative = difference.norm() / golden.double().norm()
            assert relative <= SPECIFICATION["tolerance"][stage]["rel_l2"], stage


@pytest.mark.parametrize("size", SPECIFICATION.get("dimensions", {}))
def test_the_drawn_weights_are_the_goldens(size):
    drawn = encoder(size, "transformers").tower
    for entry in SPECIFICATION["state_dict"][size]:
        if entry["name"].startswith("encoder."):
            value = drawn.encoder.state_dict()[entry["hf_name"].removeprefix("encoder.")]
            assert list(value.shape) == entry["shape"], entry["name"]
            assert value.flatten()[0].item() == pytest.approx(entry["first"], rel=1e-6), entry["name"]
            assert value.double().abs().sum().item() == pytest.approx(entry["abs_sum"], rel=1e-6), entry[
                "name"
            ]
