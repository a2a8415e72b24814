"""CLAP's audio network from transformers and from laion_clap, with the same results."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec, module_from_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llava_soundclip._extras import require
from llava_soundclip.encoders.clap.frontend import HOP, N_FFT, N_MELS, SAMPLING_RATE
from llava_soundclip.encoders.clap.weights import (
    ATTENTION_WINDOW,
    PATCH,
    STAGES,
    CLAPWeights,
    transformers_state,
)

_IMAGE = 256  # patches times PATCH on a side: 1024 frames of 64 bins, folded
_FUSION = "aff_2d"  # in all released fused checkpoints


class CLAPTower(nn.Module, ABC):
    """One library's HTSAT and projection. They stay in evaluation mode because of the batch statistics.

    The first normalisation and the resizing after it are always in float32.

    Attributes:
        network: module of the library, with the weights of the checkpoint.
    """

    network: Any  # a module of a library without types
    _folding: ClassVar[str]  # name of the branch's method that folds a spectrogram into an image

    def __init__(self, weights: CLAPWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self._build(weights)
        state = self._state(
            {
                name: tensor.to(torch.float32 if ".bn0." in name else dtype, copy=True)
                for name, tensor in weights.state.items()
            }
        )
        self.network.load_state_dict(state, assign=True)
        original = getattr(self.branch, self._folding)
        setattr(self.branch, self._folding, partial(_fold, original, self.branch.patch_embed.proj))
        self.to(dtype)  # also for tensors that the checkpoint lacks
        self.eval()

    @abstractmethod
    def forward(self, mel: Tensor, longer: Tensor) -> Tensor:
        """Compute the projected embeddings before normalisation.

        Args:
            mel: (B, 1 or 4, 1001, 64) float32; four for a network with fusion.
            longer: (B,) bool, True for sounds whose crops are used; for a network with fusion.

        Returns:
            (B, dim) in the weights' dtype.
        """

    @property
    @abstractmethod
    def branch(self) -> Any:
        """HTSAT, with `patch_embed` and `layers` in both libraries."""

    @property
    @abstractmethod
    def projection(self) -> Any:
        """The two matrices after HTSAT."""

    @property
    @abstractmethod
    def first_norm(self) -> nn.BatchNorm2d:
        """The normalisation of the spectrogram's bins."""

    @abstractmethod
    def _build(self, weights: CLAPWeights) -> None:
        """Set `network` to the library's module, with the sizes of the checkpoint."""

    @abstractmethod
    def _state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A complete state dict of `network`, from the checkpoint's tensors and computed ones."""

    def train(self, mode: bool = True) -> "CLAPTower":
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CLAPTower":
        kept = {name: tensor.clone() for name, tensor in self.first_norm.state_dict().items()}
        super()._apply(fn, recurse)
        self.first_norm.float().load_state_dict(kept)
        return self


class TransformersTower(CLAPTower):
    """transformers' `ClapAudioModelWithProjection`."""

    _folding = "reshape_mel2img"

    def forward(self, mel: Tensor, longer: Tensor) -> Tensor:
        return self.network(input_features=mel, is_longer=longer[:, None]).audio_embeds

    @property
    def branch(self) -> Any:
        return self.network.audio_model.audio_encoder

    @property
    def projection(self) -> Any:
        return self.network.audio_projection

    @property
    def first_norm(self) -> nn.BatchNorm2d:
        return self.branch.batch_norm

    def _build(self, weights: CLAPWeights) -> None:
        from transformers import ClapAudioConfig, ClapAudioModelWithProjection

        config = ClapAudioConfig(
            patch_embeds_hidden_size=weights.width,
            hidden_size=2 ** (STAGES - 1) * weights.width,
            depths=list(weights.depths),
            num_attention_heads=list(weights.heads),
            projection_dim=weights.dim,
            enable_fusion=weights.fused,
        )
        with torch.device("meta"):  # without memory or random numbers: the weights are replaced at once
            self.network = ClapAudioModelWithProjection(config)

    def _state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        computed: dict[str, Tensor] = {}
        for name in self.network.state_dict():
            if name.endswith("relative_position_index"):
                computed[name] = _relative_positions()
            elif name.endswith("num_batches_tracked"):
                computed[name] = torch.tensor(0)
        return transformers_state(state) | computed


class LaionTower(CLAPTower):
    """laion_clap's HTSAT. It receives our spectrogram instead of computing its own."""

    _folding = "reshape_wav2img"

    def forward(self, mel: Tensor, longer: Tensor) -> Tensor:
        sounds = {"mel_fusion": mel, "longer": longer} if self.branch.enable_fusion else {"waveform": mel}
        return self.projection(self.branch(sounds, device=mel.device)["embedding"])

    @property
    def branch(self) -> Any:
        return self.network["audio_branch"]

    @property
    def projection(self) -> Any:
        return self.network["audio_projection"]

    @property
    def first_norm(self) -> nn.BatchNorm2d:
        return self.branch.bn0

    def _build(self, weights: CLAPWeights) -> None:
        config = SimpleNamespace(
            sample_rate=SAMPLING_RATE, window_size=N_FFT, hop_size=HOP, mel_bins=N_MELS, fmin=50, fmax=14_000
        )
        # The constructor draws random weights, and its meshgrid makes torch warn.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
            branch = laion_htsat().HTSAT_Swin_Transformer(
                spec_size=_IMAGE,
                patch_size=PATCH,
                patch_stride=(PATCH, PATCH),
                num_classes=1,
                embed_dim=weights.width,
                depths=weights.depths,
                num_heads=weights.heads,
                window_size=ATTENTION_WINDOW,
                config=config,
                enable_fusion=weights.fused,
                fusion_type=_FUSION if weights.fused else "None",
            )
            width = 2 ** (STAGES - 1) * weights.width
            projection = nn.Sequential(
                nn.Linear(width, weights.dim), nn.ReLU(), nn.Linear(weights.dim, weights.dim)
            )
        if weights.fused:
            branch.patch_embed.fusion_model.register_forward_pre_hook(_in_one_dtype)
        # Embeddings need neither the spectrogram nor the classifier of HTSAT.
        for name in ("spectrogram_extractor", "logmel_extractor", "tscam_conv", "head"):
            setattr(branch, name, nn.Identity())
        self.network = nn.ModuleDict({"audio_branch": branch, "audio_projection": projection})

    def _state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self.network.state_dict(), **state}


TOWERS: dict[str, type[CLAPTower]] = {"transformers": TransformersTower, "laion": LaionTower}


def laion_htsat() -> Any:
    """Import only laion_clap's module of HTSAT, since importing the whole package loads tokenizers from the Hub.

    Raises:
        ImportError: if the package isn't installed; the message has the pip line.
    """
    bare = []
    try:
        for package in ("laion_clap", "laion_clap.clap_module"):
            if (spec := find_spec(package)) is None:
                return require(package, extra="clap")  # raises
            if package not in sys.modules:
                sys.modules[package] = module_from_spec(spec)  # found, not run
                bare.append(package)
        return require("laion_clap.clap_module.htsat", extra="clap")
    finally:
        for package in bare:
            del sys.modules[package]


def _fold(original: Callable[[Tensor], Tensor], patches: nn.Conv2d, mel: Tensor) -> Tensor:
    """Fold a spectrogram into an image with the library's method: on the CPU if the device lacks bicubic resize.

    Returns:
        The image in the dtype of the next weights.
    """
    image = original(mel.cpu() if mel.device.type == "mps" else mel)
    return image.to(patches.weight)


def _in_one_dtype(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cast the crops to one dtype, since laion_clap's padding with float32 zeros makes them float32."""
    whole, crops = args
    return whole, crops.to(whole.dtype)


def _relative_positions() -> Tensor:
    """(64, 64) int64: row of the bias table for each pair of patches in an attention window."""
    patches = torch.arange(ATTENTION_WINDOW**2)
    rows, columns = (
        at[:, None] - at[None, :] + ATTENTION_WINDOW - 1
        for at in (patches // ATTENTION_WINDOW, patches % ATTENTION_WINDOW)
    )
    return rows * (2 * ATTENTION_WINDOW - 1) + columns
