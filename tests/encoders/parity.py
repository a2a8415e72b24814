"""The golden outputs in ../shared/parity: their sounds, their weights and their tolerances."""

import hashlib
import importlib.util
import json
import wave
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import SHARED

PARITY = SHARED / "parity"


class Goldens:
    """One encoder's cases: `NAME.json` and `NAME.safetensors`. Without the folder there are none."""

    def __init__(self, name: str) -> None:
        self.name = name
        here = PARITY.is_dir()
        self.specification: dict[str, Any] = (
            json.loads((PARITY / f"{name}.json").read_text()) if here else {"cases": []}
        )
        self.cases = {case["name"]: case for case in self.specification["cases"]}
        self._sounds: dict[str, np.ndarray] = {}

    def parameters(self, *slow: str) -> list[Any]:
        """The cases for `parametrize`."""
        return [pytest.param(case, marks=pytest.mark.slow if case in slow else ()) for case in self.cases]

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by "case/stage"."""
        return _load(self.name)

    def stages(self, case: str) -> dict[str, Tensor]:
        """One case's numbers, by stage."""
        return {
            name.removeprefix(f"{case}/"): value
            for name, value in self.tensors().items()
            if name.startswith(f"{case}/")
        }

    def sound(self, case: str) -> np.ndarray:
        """(channels, samples) float32 by the operations of the case's entry; the right samples, by their hash."""
        if case not in self._sounds:
            samples = make(self.cases[case]["ops"])
            digest = hashlib.sha256(np.ascontiguousarray(samples).astype("<f4").tobytes()).hexdigest()
            entry = self.cases[case]
            assert digest == entry.get("input_after_transforms", entry["input"])["sha256_float32_le"], case
            self._sounds[case] = samples
        return self._sounds[case]

    def check(self, case: str, stage: str, ours: Tensor, *, strict: bool = False) -> None:
        """Hold a stage against its golden within its tolerance."""
        golden = self.stages(case)[stage]
        assert ours.shape == golden.shape, stage
        tolerance = self.tolerance(case, stage, strict=strict)
        if tolerance.get("skip"):
            return
        assert ours.isfinite().all(), stage
        if tolerance.get("finite_only"):
            return
        ours, golden = ours.double().cpu(), golden.double()
        difference = ours - golden
        measured = {
            "max_abs": difference.abs().max().item(),
            "mean_abs": difference.abs().mean().item(),
            "rel_l2": (difference.norm() / golden.norm()).item(),
            "cosine_min": torch.cosine_similarity(ours.flatten(), golden.flatten(), dim=0).item(),
        }
        for measure, limit in tolerance.items():
            within = measured[measure] >= limit if measure == "cosine_min" else measured[measure] <= limit
            assert within, f"{case}/{stage}: {measure} is {measured[measure]:.3g}, tolerance {limit:.3g}"

    def tolerance(self, case: str, stage: str, *, strict: bool = False) -> Mapping[str, Any]:
        own, common = self.cases[case].get("tolerance") or {}, self.specification["tolerance"]
        if strict and not own:
            common = {**common, **self.specification.get("tolerance_strict", {})}
        for table in (own, common):
            for key in (stage, *(kind for kind in ("frontend", "waveform") if stage.startswith(f"{kind}_"))):
                if key in table:
                    return table[key]
        raise KeyError(stage)


def frontend_stages(frontend: Tensor, name: str = "frontend") -> dict[str, Tensor]:
    """What the goldens keep of a network's input, whose last axis is time."""
    whole = frontend.double()
    statistics = torch.stack([whole.mean(), whole.std(), whole.min(), whole.max()])
    return {
        name: frontend,
        f"{name}_first": frontend[..., :8],
        f"{name}_last": frontend[..., -8:],
        f"{name}_stats": statistics,
        f"{name}_over_frequency": frontend.mean(-2),
        f"{name}_over_time": frontend.mean(-1),
    }


def fill(state: Mapping[str, Tensor], skip: tuple[str, ...] = (), seed: int = 0) -> dict[str, Tensor]:
    """Weights drawn from (seed, name), as the goldens' were."""
    return _fill_module().fill_(dict(state), seed=seed, skip=skip)


def make(ops: list[dict[str, Any]]) -> np.ndarray:
    """(channels, samples) float32 by a list of operations; `ops` of every JSON says what each does."""
    signal = pytest.importorskip("scipy.signal")
    x, rate = np.zeros((1, 0), np.float32), 0
    for op in ops:
        kind = op["op"]
        if kind == "read":
            x, rate = read(SHARED / op["file"])
        elif kind == "stack":
            x = np.concatenate([read(SHARED / file)[0] for file in op["files"]])
            rate = read(SHARED / op["files"][0])[1]
        elif kind == "zeros":
            x, rate = np.zeros((1, op["samples"]), np.float32), op.get("rate", rate)
        elif kind == "crop":
            x = x[:, op["start"] : op["stop"]]
        elif kind == "channel":
            index = op.get("index", op.get("i", 0))
            x = x[index : index + 1]
        elif kind == "mono":
            x = x.mean(axis=0, keepdims=True, dtype=np.float32)
        elif kind == "gain":
            x = x * np.float32(op["value"])
        elif kind == "offset":
            x = x + np.float32(op["value"])
        elif kind == "resample_poly":
            x = signal.resample_poly(x.astype(np.float64), op["up"], op["down"], axis=1).astype(np.float32)
            rate = op.get("to", rate)
        elif kind == "librosa_load":
            import soxr

            length = int(np.ceil(x.shape[1] * (float(op["to"]) / rate)))  # librosa's, sometimes one too long
            x = soxr.resample(x.mean(axis=0, dtype=np.float32), rate, op["to"], quality="HQ")[None]
            x, rate = np.pad(x, ((0, 0), (0, max(length - x.shape[1], 0))))[:, :length], op["to"]
        elif kind == "tile":
            x = np.tile(x, (1, op["n"]))
        elif kind == "edge_pad":
            missing = op["to"] - x.shape[1]
            left = round(0.5 * missing)
            x = np.pad(x, ((0, 0), (left, missing - left)), mode="edge")
        else:
            raise ValueError(f"unknown operation {kind!r}")
    return x


@lru_cache
def read(file: Path) -> tuple[np.ndarray, int]:
    """(channels, samples) float32, and the file's rate."""
    if file.suffix == ".wav":
        with wave.open(str(file)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            mixed = samples.reshape(-1, sound.getnchannels()).T / np.float32(32_768)
            return mixed.astype(np.float32), sound.getframerate()
    import av

    with av.open(str(file)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels, rate = container.streams.audio[0].channels, container.streams.audio[0].rate
    joined = np.concatenate(frames, axis=1)
    scale = np.float32(2 ** (8 * joined.itemsize - 1))
    return (joined.reshape(-1, channels).T if len(joined) == 1 else joined) / scale, rate


@cache
def _load(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


@cache
def _fill_module() -> Any:
    specification = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
