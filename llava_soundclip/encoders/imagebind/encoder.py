"""ImageBind's audio tower: a small ViT on three windows of a sound.

Written from a description of the original's behaviour; its code, which is CC-BY-NC-SA, was not looked at.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip.encoders.base import AtOnce, AudioEncoder, DType, EncoderCard, check_dtype
from llava_soundclip.encoders.checkpoints import (
    check_tensors,
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.encoders.imagebind.fbank import SAMPLING_RATE, WINDOWS, frontend, resample
from llava_soundclip.fingerprints import fingerprint

KNOWN = {
    "nielsr/imagebind-huge": "nielsr/imagebind-huge",
    "imagebind_huge.pth": "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
}
LICENCE = "CC-BY-NC-SA-4.0"

_PATCH, _STRIDE = 16, 10  # of the spectrogram
_HEAD_WIDTH = 64
_LARGEST_SCALE = 100.0
_WINDOWS_AT_ONCE = AtOnce(cpu=6, accelerator=96)
_ORIGINAL = {  # our name to the original's; the blocks' are below
    "cls_token": "modality_preprocessors.audio.cls_token",
    "patches.weight": "modality_preprocessors.audio.rgbt_stem.proj.weight",
    "patches_norm.": "modality_preprocessors.audio.rgbt_stem.norm_layer.",
    "positions": "modality_preprocessors.audio.pos_embedding_helper.pos_embed",
    "blocks.": "modality_trunks.audio.blocks.",
    "head_norm.": "modality_heads.audio.0.",
    "head.": "modality_heads.audio.2.",
    "log_logit_scale": "modality_postprocessors.audio.1.log_logit_scale",
}
_PREFIXES = [f"modality_{part}.audio." for part in ("preprocessors", "trunks", "heads", "postprocessors")]


class ImageBindEncoder(AudioEncoder):
    """ImageBind: front, middle and back of a sound, 2 s each, averaged.

    Of a sound longer than 6 s the rest isn't heard, as in the original. Channels: the mean is taken off all jointly,
    then the first one is used. Each window's vector has the length min(exp(log_logit_scale), 100), 20 in the
    released weights; their mean isn't normalised again. In float16 the vectors have a cosine of 0.99999 and in
    bfloat16 of 0.9999 to those in float32 (drawn weights).

    The weights are CC-BY-NC-SA 4.0: not for commercial use. In float32 on a CPU they stay mapped to their file.

    Attributes:
        tower: the network.
    """

    name: ClassVar[str] = "imagebind"
    sampling_rate = SAMPLING_RATE
    resamples: ClassVar[bool] = True
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="1024",
        window="three times 2 s: front, middle, back",
        code="written anew (the original's is CC-BY-NC-SA-4.0)",
        weights=LICENCE,
        source="Hub: nielsr/imagebind-huge (4.8 GB)",
    )

    def __init__(self, tower: "ImageBindTower", checkpoint: str) -> None:
        super().__init__()
        self.tower = tower
        self.dim = tower.head.out_features
        self.checkpoint = checkpoint

    @classmethod
    def load(
        cls,
        *,
        checkpoint: str | PathLike[str] | None = "nielsr/imagebind-huge",
        device: str | torch.device | None = None,
        dtype: DType | torch.dtype | None = None,
        revision: str | None = None,
    ) -> "ImageBindEncoder":
        """Build the encoder from a checkpoint, of which only the audio part is read.

        Args:
            checkpoint: a Hub id of a mirror in safetensors (the original's names), "imagebind_huge.pth" (from
                Meta's server), or one of these as a file.
            device: where it runs; the CPU by default.
            dtype: of the weights and the hidden states, float32 by default; the filter banks are float32 in any
                case.
            revision: branch, tag or commit on the Hub.

        Raises:
            ValueError: for an option that isn't one of these (before anything is read), or a checkpoint that
                is cut, foreign or holds code.
            OSError: if the checkpoint isn't there, or a server can't be reached.
        """
        checkpoint = "nielsr/imagebind-huge" if checkpoint is None else checkpoint
        checked_dtype = check_dtype(dtype)
        path = find_checkpoint(checkpoint, KNOWN, "ImageBind", revision)
        state = _audio_part(path)
        _say_licence()
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            tower = _tower_for(state, path)
        tower.load_state_dict({name: tensor.to(checked_dtype) for name, tensor in state.items()}, assign=True)
        return cls(tower, f"huge-{fingerprint(state)}").to(device)

    def _resample(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        from llava_soundclip.media.waveforms import check_rate

        check_rate(sampling_rate)
        return resample(torch.from_numpy(waveform), int(sampling_rate), SAMPLING_RATE).numpy()

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        inputs = torch.cat([frontend(waveform) for waveform in waveforms])
        device = self.tower.head.weight.device
        vectors = [self.tower(part.to(device)) for part in inputs.split(_WINDOWS_AT_ONCE.on(device))]
        return torch.cat(vectors).unflatten(0, (-1, WINDOWS)).mean(dim=1)


class ImageBindTower(nn.Module):
    """The network behind the filter banks.

    Args:
        width: of the hidden states.
        depth: blocks.
        mlp_width: of their hidden layers.
        patches: of a spectrogram, 228 in a window of 2 s.
        dim: of the vectors.
    """

    log_logit_scale: Tensor

    def __init__(self, width: int, depth: int, mlp_width: int, patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.patches = nn.Conv2d(1, width, _PATCH, _STRIDE, bias=False)
        self.patches_norm = nn.LayerNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(_Block(width, mlp_width) for _ in range(depth))
        self.head_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, dim, bias=False)
        self.register_buffer("log_logit_scale", torch.empty(()))

    def forward(self, banks: Tensor) -> Tensor:
        """Embed windows.

        Args:
            banks: (W, 1, 128, 204) float32.

        Returns:
            (W, dim) float32, each of the length min(exp(log_logit_scale), 100).
        """
        vectors = self.head(self.head_norm(self.trunk(self.tokens(banks)))).float()
        return F.normalize(vectors, dim=-1) * self.log_logit_scale.float().exp().clamp(max=_LARGEST_SCALE)

    def tokens(self, banks: Tensor) -> Tensor:
        """(W, 1 + patches, width): CLS and the patches, positions added."""
        patches = self.patches(banks.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        patches = self.patches_norm(patches)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.positions

    def trunk(self, tokens: Tensor) -> Tensor:
        """(W, width): CLS behind the last block."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


class _Attention(nn.Module):
    """Attention with one learned key and value more than tokens; its tensors are nn.MultiheadAttention's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width))
        self.bias_v = nn.Parameter(torch.empty(1, 1, width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(W, tokens, width) to the same."""
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        key = torch.cat([key, self.bias_k.expand(len(x), -1, -1)], dim=1)
        value = torch.cat([value, self.bias_v.expand(len(x), -1, -1)], dim=1)
        query, key, value = (
            part.unflatten(-1, (-1, _HEAD_WIDTH)).transpose(1, 2) for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


def original_name(name: str) -> str:
    """What the original calls a tensor of `ImageBindTower`."""
    for ours, theirs in _ORIGINAL.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def _audio_part(path: Path) -> dict[str, Tensor]:
    """The tower's tensors under our names, mapped to the file where it can be.

    A tensor that the tower doesn't have keeps its name, so that it is refused by it.
    """
    ours = {theirs: name for name, theirs in _ORIGINAL.items()}
    state = {}
    for name, tensor in read_tensors(path, _PREFIXES).items():
        prefix = next((theirs for theirs in ours if name.startswith(theirs)), None)
        state[name if prefix is None else ours[prefix] + name.removeprefix(prefix)] = tensor
    return state


def _tower_for(state: Mapping[str, Tensor], path: Path) -> ImageBindTower:
    """A tower of the sizes that the weights have; on the device of the context."""
    positions, head, fc1 = (
        state.get(name) for name in ("positions", "head.weight", "blocks.0.mlp.fc1.weight")
    )
    if positions is None or head is None or fc1 is None or positions.ndim != 3 or 2 != head.ndim != fc1.ndim:
        raise ValueError(
            f"{path} holds no ImageBind audio tower: expected {original_name('positions')} and "
            f"{len(_PREFIXES)} parts named {', '.join(_PREFIXES)}"
        )
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    width = positions.shape[2]
    if width % _HEAD_WIDTH:
        raise ValueError(f"{path}: a width of {width} has no heads of {_HEAD_WIDTH}")
    tower = ImageBindTower(width, depth, fc1.shape[0], positions.shape[1] - 1, head.shape[0])
    expected = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    check_tensors(path, state, expected, "ImageBind audio tower")
    return tower


@cache
def _say_licence() -> None:
    logging.getLogger(__name__).warning(
        "ImageBind's weights are licensed %s: not for commercial use, and what is made of them is to be shared "
        "alike",
        LICENCE,
    )
