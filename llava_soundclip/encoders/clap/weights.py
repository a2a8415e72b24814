"""Weights of CLAP's audio encoder under one set of names, from any file format.

The names are those of LAION's checkpoints. transformers has the same tensors under other names, with separate query,
key and value matrices instead of one `qkv`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from llava_soundclip.encoders.checkpoints import (
    check_tensors,
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.fingerprints import fingerprint

STAGES = 4  # all stages except the last halve the grid and double the width
ATTENTION_WINDOW = 8  # patches per side
PATCH = 4  # mel bins, and frames

_LAION = "lukewys/laion_clap"
KNOWN = {
    name: f"{_LAION}/{name}"
    for name in (
        "630k-audioset-best.pt",
        "630k-best.pt",
        "630k-audioset-fusion-best.pt",
        "630k-fusion-best.pt",
        "music_audioset_epoch_15_esc_90.14.pt",
        "music_speech_epoch_15_esc_89.25.pt",
        "music_speech_audioset_epoch_15_esc_89.98.pt",
    )
}
_SIZES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (128, (2, 2, 12, 2)): "base",
    (256, (2, 2, 12, 2)): "large",
}
_PREFIXES = ("audio_branch.", "audio_model.audio_encoder.", "audio_projection.")
_NOT_READ = re.compile(  # computed here, or part of the classifier from HTSAT's training before CLAP
    r"\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\."
    r"|\.(num_batches_tracked|relative_position_index|attn_mask)$"
)
_TRANSFORMERS_NAMES = {  # in this order, both ways
    "audio_branch.": "audio_model.audio_encoder.",
    "audio_projection.0.": "audio_projection.linear1.",
    "audio_projection.2.": "audio_projection.linear2.",
    ".bn0.": ".batch_norm.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.": ".attention.self.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class CLAPWeights:
    """Tensors of HTSAT and its projection. All sizes are read from their shapes.

    Raises:
        ValueError: if the tensors aren't those of a CLAP; the message names the first wrong ones.
    """

    source: Path  # for messages
    state: Mapping[
        str, Tensor
    ]  # LAION's names, from "audio_branch." and "audio_projection." on; any float dtype

    def __post_init__(self) -> None:
        stem = self.state.get("audio_branch.patch_embed.proj.weight")
        last = self.state.get("audio_projection.2.weight")
        if stem is None or last is None or stem.ndim != 4 or last.ndim != 2:
            raise ValueError(
                f"{self.source} holds no CLAP: expected LAION's audio_branch.* and audio_projection.*, or "
                "transformers' audio_model.* and audio_projection.*"
            )
        check_tensors(
            self.source,
            self.state,
            clap_shapes(self.width, self.depths, self.heads, self.dim, self.fused),
            "CLAP audio encoder",
        )
        if any(2**stage * self.width % heads for stage, heads in enumerate(self.heads)):
            raise ValueError(
                f"{self.source}: {self.heads} attention heads don't divide the stages' widths, from {self.width} on"
            )

    @property
    def width(self) -> int:
        """Width of a patch's embedding. Each stage after the first doubles it."""
        return self.state["audio_branch.patch_embed.proj.weight"].shape[0]

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks in each stage, at least one."""
        found = (re.match(r"audio_branch\.layers\.(\d+)\.blocks\.\d+\.", name) for name in self.state)
        stages = [stage for _, stage in {(match[0], match[1]) for match in found if match}]
        return tuple(max(stages.count(str(stage)), 1) for stage in range(STAGES))

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads in each stage, at least one."""
        tables = (
            self.state.get(f"audio_branch.layers.{stage}.blocks.0.attn.relative_position_bias_table")
            for stage in range(STAGES)
        )
        return tuple(1 if table is None or table.ndim != 2 else max(table.shape[1], 1) for table in tables)

    @property
    def dim(self) -> int:
        """Width of an embedding, 512 in all released checkpoints."""
        return self.state["audio_projection.2.weight"].shape[0]

    @property
    def fused(self) -> bool:
        """True if the network fuses a long sound with three of its crops."""
        return any(name.startswith("audio_branch.patch_embed.fusion_model.") for name in self.state)

    @property
    def variant(self) -> str:
        """The published size of these shapes: "htsat-tiny", "htsat-tiny-fused", "htsat-base"."""
        size = _SIZES.get((self.width, self.depths), f"{self.width}x{sum(self.depths)}")
        return f"htsat-{size}{'-fused' if self.fused else ''}"

    @property
    def identity(self) -> str:
        """The variant and 8 hex digits that identify the trained weights, independent of the file format."""
        return f"{self.variant}-{fingerprint(self.state)}"


def read_checkpoint(checkpoint: str | PathLike[str], revision: str | None = None) -> CLAPWeights:
    """Read the audio encoder of a CLAP checkpoint. The variant is read from the weights, not from the file name.

    Args:
        checkpoint: name in `KNOWN`, Hub id, transformers folder, or file: LAION's `.pt`, or transformers'
            `model.safetensors` or `pytorch_model.bin`.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: for an unknown name, and for a file that is truncated, foreign or contains code.
        OSError: for a path that doesn't exist, and if the Hub can't be reached or lacks the checkpoint.
    """
    path = find_checkpoint(checkpoint, KNOWN, "CLAP", revision)
    tensors = read_tensors(path, _PREFIXES)
    return CLAPWeights(
        path,
        _laion_names({name: tensor for name, tensor in tensors.items() if not _NOT_READ.search(name)}),
    )


def transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LAION's tensors under transformers' names, with `qkv` split. They share memory with the originals."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for ours, theirs in _TRANSFORMERS_NAMES.items():
            name = name.replace(ours, theirs)
        if ".qkv." in name:
            renamed |= {
                name.replace(".qkv.", f".{part}."): rows
                for part, rows in zip(_PARTS, tensor.chunk(3), strict=True)
            }
        else:
            renamed[name] = tensor
    return renamed


def _laion_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of either library under LAION's names. A query without its key and value stays unchanged."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for ours, theirs in _TRANSFORMERS_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        names = [name.replace(".query.", f".{part}.") for part in _PARTS]
        parts = [renamed[part] for part in names if part in renamed]
        if len({part.shape for part in parts}) == 1 and len(parts) == len(_PARTS):
            renamed[name.replace(".query.", ".qkv.")] = torch.cat(parts)
            for part in names:
                del renamed[part]
    return renamed


def clap_shapes(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], dim: int, fused: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that an embedding depends on, as in LAION's checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {f"bn0.{part}": (64,) for part in _BATCH_NORM}
    shapes |= _layer("patch_embed.proj", width, 1, PATCH, PATCH) | _norm("patch_embed.norm", width)
    if fused:
        shapes |= _layer("patch_embed.mel_conv2d", width, 1, PATCH, 3 * PATCH)
        inner = width // 4
        for first, path in ((0, "local_att"), (1, "global_att")):  # the global path starts with pooling
            prefix = f"patch_embed.fusion_model.{path}."
            shapes |= _layer(f"{prefix}{first}", inner, width, 1, 1)
            shapes |= {f"{prefix}{first + 1}.{part}": (inner,) for part in _BATCH_NORM}
            shapes |= _layer(f"{prefix}{first + 3}", width, inner, 1, 1)
            shapes |= {f"{prefix}{first + 4}.{part}": (width,) for part in _BATCH_NORM}
    for stage, (depth, head_count) in enumerate(zip(depths, heads, strict=True)):
        size = 2**stage * width
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            shapes |= _norm(f"{prefix}norm1", size) | _norm(f"{prefix}norm2", size)
            shapes[f"{prefix}attn.relative_position_bias_table"] = (
                (2 * ATTENTION_WINDOW - 1) ** 2,
                head_count,
            )
            shapes |= _layer(f"{prefix}attn.qkv", 3 * size, size) | _layer(f"{prefix}attn.proj", size, size)
            shapes |= _layer(f"{prefix}mlp.fc1", 4 * size, size) | _layer(f"{prefix}mlp.fc2", size, 4 * size)
        if stage < STAGES - 1:
            shapes |= _norm(f"layers.{stage}.downsample.norm", 4 * size)
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * size, 4 * size)
    last = 2 ** (STAGES - 1) * width
    shapes |= _norm("norm", last)
    return {
        **{f"audio_branch.{name}": shape for name, shape in shapes.items()},
        **_layer("audio_projection.0", dim, last),
        **_layer("audio_projection.2", dim, dim),
    }


_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
