"""CLAPs with drawn weights, and files of them in every format, for the tests."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llava_soundclip.encoders.clap.towers import laion_htsat
from llava_soundclip.encoders.clap.weights import CLAPWeights, clap_shapes, transformers_state
from tests.encoders.fake_whisper import drawn

SMALL: dict[str, Any] = {"width": 16, "depths": (2, 1, 1, 1), "heads": (2, 4, 4, 8), "dim": 24}
TINY: dict[str, Any] = {"width": 96, "depths": (2, 2, 6, 2), "heads": (4, 8, 16, 32), "dim": 512}
BASE: dict[str, Any] = {"width": 128, "depths": (2, 2, 12, 2), "heads": (4, 8, 16, 32), "dim": 512}


# case: sound, whether the network is fused, first frames of the crops if the sound is long
GOLDEN_CASES: dict[str, tuple[str, bool, tuple[int, int, int] | None]] = {
    "chirp": ("chirp", False, None),
    "quiet": ("quiet", False, None),
    "silence": ("silence", False, None),
    "fused-chirp": ("chirp", True, None),
    "fused-long": ("long", True, (0, 66, 130)),
}


def golden_sound(name: str) -> np.ndarray:
    """A synthetic sound, float32 (samples,) at 48 kHz: the same numbers wherever it is computed."""
    seconds = {"chirp": 3.3, "quiet": 0.7, "silence": 1.0, "long": 11.3}[name]
    time = np.arange(round(seconds * 48_000)) / 48_000
    if name == "silence":
        sound = np.zeros_like(time)
    elif name == "quiet":  # a few steps of 16 bits: rounding is heard
        sound = 2e-4 * np.sin(2 * np.pi * 440 * time)
    else:  # sweeps, with a beat of 40 Hz that a shrunk spectrogram blurs
        sound = 0.3 * np.sin(2 * np.pi * (100 * time + 450 * time**2)) * (1 + np.sin(2 * np.pi * 40 * time))
        # Without noise the empty bins would be float32's own.
        sound += 0.01 * (np.random.default_rng(0).random(len(time)) - 0.5)
    return sound.astype(np.float32)


def weights(sizes: dict[str, Any] = SMALL, *, fused: bool = False, seed: int = 0) -> CLAPWeights:
    """Drawn weights, under LAION's names. Running means and variances are those of a log-mel, about."""
    state = drawn(clap_shapes(**sizes, fused=fused), seed)
    for name, tensor in state.items():
        if name.endswith("running_var"):
            state[name] = tensor.abs() + (200.0 if ".bn0." in name else 1.0)
        elif name.endswith("bn0.running_mean"):
            state[name] = 10.0 * tensor - 40.0
    return CLAPWeights(Path("drawn"), state)


def write_clap(path: Path, drawn_weights: CLAPWeights | None = None, *, metric: Any = None) -> Path:
    """A `.pt` as LAION's training writes it; of the text side only what a reader must step over."""
    written = weights() if drawn_weights is None else drawn_weights
    state = {f"module.{name}": tensor for name, tensor in written.state.items()}
    state["module.logit_scale_a"] = torch.tensor(2.0)
    state["module.audio_branch.spectrogram_extractor.stft.conv_real.weight"] = torch.zeros(513, 1, 1024)
    state["module.audio_branch.logmel_extractor.melW"] = torch.zeros(513, 64)
    state["module.audio_branch.bn0.num_batches_tracked"] = torch.tensor(7)
    state["module.audio_branch.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64).long()
    state["module.audio_branch.layers.0.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    state["module.audio_branch.tscam_conv.bias"] = torch.zeros(527)
    state["module.audio_branch.head.bias"] = torch.zeros(527)
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    state["module.audio_transform.sequential.0.weight"] = torch.zeros(2, 2)
    content = {"epoch": 15, "name": "drawn", "optimizer": {"state": {}, "param_groups": []}}
    if metric is not None:
        content["best_metric"] = metric
    torch.save({**content, "state_dict": state}, path)
    return path


def write_transformers(folder: Path, weights: CLAPWeights, *, pickled: bool = False) -> Path:
    """A folder as `ClapModel.save_pretrained` writes it, with some of the text side."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().clone() for name, tensor in transformers_state(weights.state).items()}
    prefix = "audio_model.audio_encoder."
    state[f"{prefix}batch_norm.num_batches_tracked"] = torch.tensor(7)
    state[f"{prefix}layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(64, 64).long()
    state["text_model.pooler.dense.bias"] = torch.zeros(4)
    state["logit_scale_a"] = torch.tensor(2.0)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def import_laion() -> ModuleType:
    """laion_clap's HTSAT, or the test is skipped.

    The package imports torchvision, of which it needs one class for training: stands in where it isn't installed.
    """
    for needed in ("laion_clap", "torchlibrosa", "h5py"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    with warnings.catch_warnings(), _torchvision():
        warnings.simplefilter("ignore")
        return laion_htsat()


@contextmanager
def _torchvision() -> Iterator[None]:
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    for name in names:
        sys.modules[name] = ModuleType(name)
    sys.modules[names[-1]].FrozenBatchNorm2d = torch.nn.BatchNorm2d
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
