"""Whisper and WhisperCLIP (section 3.2 of the paper): one vector out of Whisper's encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llava_soundclip._extras import require
from llava_soundclip.encoders.base import (
    AtOnce,
    AudioEncoder,
    EncoderCard,
    LoadOptions,
    Waveform,
    batches,
)
from llava_soundclip.encoders.checkpoints import check_checkpoint
from llava_soundclip.encoders.whisper.formats import HUB_IDS, LAYOUT, read_checkpoint
from llava_soundclip.encoders.whisper.fusion import Fusion, FusionName
from llava_soundclip.encoders.whisper.mel import (
    SAMPLING_RATE,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    WINDOW_TOKENS,
    log_mel,
    token_count,
)
from llava_soundclip.encoders.whisper.towers import TOWERS, WhisperTower
from llava_soundclip.encoders.whisper.weights import WhisperWeights

Backend = Literal["transformers", "openai"]
Pooling = Literal["valid", "all"]
Window = Literal["padded", "clip"]
Long = Literal["windows", "trim"]

_TOKENS_AT_ONCE = AtOnce(cpu=2 * WINDOW_TOKENS, accelerator=16 * WINDOW_TOKENS)


@dataclass(frozen=True, kw_only=True)
class WhisperOptions(LoadOptions):
    """Options of `WhisperEncoder.load`.

    Attributes:
        checkpoint: a Whisper name ("tiny.en", "small", "large-v3", "turbo"; its weights come from the
            Hub with either backend), a Hub id, a transformers folder, an openai-whisper `.pt`, or a
            CTranslate2 folder. "small" by default: the paper asks for no smaller one (B.2).
        dtype: dtype of the weights and hidden states; the spectrogram and the means are always float32.
        backend: library whose module runs: "transformers", or "openai" (the extra `whisper`).
        pooling: tokens that are averaged: "valid" are those that the sound reaches, "all" the whole window.
        window: "padded" fills 30 s up with silence as Whisper does, "clip" encodes the sound alone.
        long: treatment of a sound above 30 s: "windows" averages over its windows by their valid
            tokens, "trim" keeps the first window, as the original does.

    Raises:
        ValueError: for an option that isn't one of these values, and for two that don't go together.
    """

    checkpoint: str | PathLike[str] = "small"
    backend: Backend = "transformers"
    pooling: Pooling = "valid"
    window: Window = "padded"
    long: Long = "windows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window == "clip" and self.pooling == "all":
            raise ValueError(
                'pooling="all" averages over the padding, and window="clip" has none: use pooling="valid"'
            )


@dataclass(frozen=True, kw_only=True)
class WhisperCLIPOptions(WhisperOptions):
    """Options of `WhisperCLIPEncoder.load`: those of `WhisperOptions`, and the fusion of the blocks.

    Attributes:
        fusion: name of a `Fusion`, which describes them.
        n: number of blocks for the fusion "last_n".

    Raises:
        ValueError: also for an `n` that is missing or not wanted.
    """

    fusion: FusionName = "average_all"
    n: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Fusion(self.fusion, self.n)


class WhisperEncoder(AudioEncoder):
    """Whisper's last block, as Whisper itself uses it: after the final LayerNorm. The mean over time.

    Attributes:
        tower: the encoder module; `tower.states` runs it block by block.
        n_layer: number of blocks (L of the paper).
        pooling, window, long: see `WhisperOptions`.
    """

    name: ClassVar[str] = "whisper"
    sampling_rate = SAMPLING_RATE
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="384 to 1280",
        window="30 s, of longer sounds windows, averaged",
        code="MIT",
        weights="MIT",
        source=f"Hub: {HUB_IDS[str(WhisperOptions.checkpoint)]}",
    )

    options: ClassVar[type[WhisperOptions]] = WhisperOptions

    def __init__(self, weights: WhisperWeights, options: WhisperOptions | None = None) -> None:
        super().__init__()
        options = options or self.options()
        self.tower: WhisperTower = TOWERS[options.backend](weights, options.torch_dtype)
        self.checkpoint = weights.identity
        self.dim = weights.n_state
        self.n_mels = weights.n_mels
        self.n_layer = weights.n_layer
        self.pooling = options.pooling
        self.window = options.window
        self.long = options.long

    @classmethod
    def load(cls, **options: Any) -> "WhisperEncoder":
        """Build the encoder from a checkpoint.

        Args:
            **options: those of `WhisperOptions`; for WhisperCLIP those of `WhisperCLIPOptions`.

        Raises:
            TypeError: for an option that there isn't.
            ValueError: for an option's value that isn't known (before anything is read), or a checkpoint that
                is cut, foreign or holds code.
            OSError: if the checkpoint isn't there, or the Hub can't be reached.
            ImportError: if openai-whisper isn't installed; the message has the pip line.
        """
        chosen = cls.options(**options)
        check_checkpoint(chosen.checkpoint, HUB_IDS, "Whisper", LAYOUT)
        if chosen.backend == "openai":
            require("whisper", extra="whisper")
        return cls(read_checkpoint(chosen.checkpoint, chosen.revision), chosen).to(chosen.device)

    def signature(self) -> Mapping[str, str]:
        return {**super().signature(), "pooling": self.pooling, "window": self.window}

    @torch.no_grad()
    def layer_means(self, waveforms: Sequence[Waveform], sampling_rate: int | Sequence[int]) -> Tensor:
        """MeanTime of every block's output, before the final LayerNorm: what WhisperCLIP fuses.

        Args:
            waveforms: B sounds, as `embed` takes them.
            sampling_rate: Hz of the waveforms, or of each.

        Returns:
            (B, n_layer, dim) float32, block 1 first.

        Raises:
            TypeError, ValueError: as `embed`.
        """
        if not waveforms:
            return torch.empty(0, self.n_layer, self.dim, device=self._device)
        return self._means(self._prepare(waveforms, sampling_rate))[:, :-1]

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self._means(waveforms)[:, -1]

    def _means(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """(B, n_layer + 1, dim) float32: every block's mean, then the last one's after the final LayerNorm."""
        windows = [(i, window) for i, waveform in enumerate(waveforms) for window in self._windows(waveform)]
        tokens = [token_count(len(window)) for _, window in windows]
        device = self._device
        totals = torch.zeros(len(waveforms), self.n_layer + 1, self.dim, device=device)
        for chunk in self._chunks(tokens):
            means = self._window_means([windows[j][1] for j in chunk], [tokens[j] for j in chunk])
            for j, mean in zip(chunk, means, strict=True):
                totals[windows[j][0]] += tokens[j] * mean
        weights = torch.zeros(len(waveforms), device=device)
        for (i, _), count in zip(windows, tokens, strict=True):
            weights[i] += count
        return totals / weights[:, None, None]

    def _windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        """A sound, (channels, samples), as mono windows of 30 s at most; channels are averaged."""
        mono = waveform.mean(axis=0, dtype=np.float32)
        stop = len(mono) if self.long == "windows" else WINDOW_SAMPLES
        return [
            mono[start : start + WINDOW_SAMPLES] for start in range(0, min(len(mono), stop), WINDOW_SAMPLES)
        ]

    def _chunks(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """Windows that run together: of one length, few enough for the memory. Their indices."""
        lengths = [WINDOW_TOKENS if self.window == "padded" else count for count in tokens]
        return batches(lengths, _TOKENS_AT_ONCE.on(self._device))

    def _window_means(self, windows: Sequence[np.ndarray], tokens: Sequence[int]) -> Tensor:
        """(W, n_layer + 1, dim) float32 of W windows that run together, each with its own valid tokens."""
        length = WINDOW_TOKENS if self.window == "padded" else tokens[0]
        # The last token's convolution reaches one frame further than its own two.
        frames = min(2 * length + 1, WINDOW_FRAMES)
        device = self._device
        mel = torch.stack([log_mel(torch.from_numpy(x).to(device), self.n_mels, frames) for x in windows])
        pooled = tokens if self.pooling == "valid" else [length] * len(tokens)
        means = []
        for states in islice(self.tower.states(mel, length), 1, None):
            means.append(_mean_time(states, pooled))
        means.append(_mean_time(self.tower.ln_post(states), pooled))
        return torch.stack(means, dim=1)


class WhisperCLIPEncoder(WhisperEncoder):
    """WhisperCLIP: Whisper's blocks, each averaged over time before the final LayerNorm, in one vector.

    Attributes:
        layer_weights: (L,) of the fusion "weighted_sum", before the softmax; zeros weigh all blocks alike.
    """

    name: ClassVar[str] = "whisperclip"
    options: ClassVar[type[WhisperOptions]] = WhisperCLIPOptions
    layer_weights: nn.Parameter

    def __init__(self, weights: WhisperWeights, options: WhisperCLIPOptions | None = None) -> None:
        options = options or WhisperCLIPOptions()
        super().__init__(weights, options)
        self.layer_weights = nn.Parameter(torch.zeros(self.n_layer))
        self.set_fusion(options.fusion, options.n)

    @property
    def fusion(self) -> FusionName:
        """Name of the fusion."""
        return self._fusion.name

    @property
    def n(self) -> int | None:
        """Number of blocks that the fusion "last_n" takes, else None."""
        return self._fusion.n

    def set_fusion(self, fusion: FusionName, n: int | None = None) -> None:
        """Fuse in another way from now on.

        Raises:
            ValueError: for an unknown fusion, and an `n` that is missing, not wanted, or above the blocks.
        """
        chosen = Fusion(fusion, n)
        chosen.check_blocks(self.n_layer, self.checkpoint)
        self._fusion = chosen

    def set_layer_weights(self, layer_weights: Tensor) -> None:
        """Take learned weights for "weighted_sum".

        Args:
            layer_weights: (n_layer,) before the softmax, block 1 first.

        Raises:
            ValueError: for another shape, or values that aren't finite.
        """
        if layer_weights.shape != self.layer_weights.shape or not layer_weights.isfinite().all():
            raise ValueError(
                f"layer_weights of shape {tuple(layer_weights.shape)}: "
                f"expected ({self.n_layer},) finite values"
            )
        with torch.no_grad():
            self.layer_weights.copy_(layer_weights)

    def signature(self) -> Mapping[str, str]:
        return {**super().signature(), "fusion": str(self._fusion)}

    def fuse(self, layer_means: Tensor) -> Tensor:
        """Fuse what `layer_means` gave; gradients flow to `layer_weights`.

        Args:
            layer_means: (B, n_layer, dim) float32.

        Returns:
            (B, dim) float32.
        """
        return self._fusion(layer_means, self.layer_weights)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self.fuse(self._means(waveforms)[:, :-1])


def _mean_time(states: Tensor, tokens: Sequence[int]) -> Tensor:
    """(W, dim) float32: the mean of (W, S, dim) over each row's first tokens."""
    return torch.stack([row[:count].float().mean(dim=0) for row, count in zip(states, tokens, strict=True)])
