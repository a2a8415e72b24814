"""Whisper and WhisperCLIP (section 3.2 of the paper): one vector from Whisper's encoder."""

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
from llava_soundclip.encoders.whisper.formats import HUB_IDS, LAYOUT, NAMES, read_checkpoint
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
        checkpoint: Whisper name ("tiny.en", "small", "large-v3", "turbo"; its weights come from the Hub with
            either backend), Hub id, transformers folder, openai-whisper `.pt`, CTranslate2 folder, or "demo" for
            the miniature's tiny.en. The paper recommends "small" or larger (B.2).
        dtype: dtype of the weights and hidden states; the spectrogram and the means are always float32.
        backend: library whose module runs: "transformers", or "openai" (the extra `whisper`).
        pooling: tokens to average: "valid" for the tokens of the sound, "all" for the whole window.
        window: "padded" pads with silence to 30 s, as Whisper does; "clip" encodes the sound without padding.
        long: treatment of a sound above 30 s: "windows" averages over its windows, weighted by their
            numbers of valid tokens; "trim" keeps the first window, as the original does.

    Raises:
        ValueError: for an unknown value of an option, and for options that exclude each other.
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
    """Options of `WhisperCLIPEncoder.load`: the options of `WhisperOptions`, and the fusion of the blocks.

    Attributes:
        fusion: name of a `Fusion`.
        n: number of blocks for the fusion "last_n".

    Raises:
        ValueError: as in `WhisperOptions`, or for an `n` that is missing or unwanted.
    """

    fusion: FusionName = "average_all"
    n: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Fusion(self.fusion, self.n)


class WhisperEncoder(AudioEncoder):
    """The mean over time of Whisper's last block, after the final LayerNorm.

    Attributes:
        tower: encoder module; `tower.states` runs it block by block.
        n_layer: number of blocks (L of the paper).
        pooling, window, long: see `WhisperOptions`.
    """

    name: ClassVar[str] = "whisper"
    sampling_rate = SAMPLING_RATE
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="384 to 1280",
        window="30 s; longer sounds in windows, averaged",
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
            **options: options of `WhisperOptions`; for WhisperCLIP, of `WhisperCLIPOptions`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an unknown value of an option (before anything is read), and for a checkpoint that is
                truncated, foreign or contains code.
            OSError: if the checkpoint doesn't exist, or the Hub can't be reached.
            ImportError: if openai-whisper isn't installed; the message has the pip line.
        """
        chosen = cls.options.given(**options)
        check_checkpoint(chosen.checkpoint, NAMES, "Whisper", LAYOUT)
        if chosen.backend == "openai":
            require("whisper", extra="whisper")
        return cls(read_checkpoint(chosen.checkpoint, chosen.revision), chosen).to(chosen.device)

    def signature(self) -> Mapping[str, str]:
        return {**super().signature(), "pooling": self.pooling, "window": self.window}

    @torch.no_grad()
    def layer_means(self, waveforms: Sequence[Waveform], sampling_rate: int | Sequence[int]) -> Tensor:
        """MeanTime of every block's output before the final LayerNorm. WhisperCLIP fuses these means.

        Args:
            waveforms: B sounds, as in `embed`.
            sampling_rate: rate in Hz of all waveforms, or one rate per waveform.

        Returns:
            (B, n_layer, dim) float32, block 1 first.

        Raises:
            TypeError, ValueError: as in `embed`.
        """
        if not waveforms:
            return torch.empty(0, self.n_layer, self.dim, device=self._device)
        return self._means(self._prepare(waveforms, sampling_rate))[:, :-1]

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self._means(waveforms)[:, -1]

    def _means(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """(B, n_layer + 1, dim) float32: the mean of every block, then the mean after the final LayerNorm."""
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
        """Average the channels of (channels, samples) and cut the result into windows of up to 30 s."""
        mono = waveform.mean(axis=0, dtype=np.float32)
        stop = len(mono) if self.long == "windows" else WINDOW_SAMPLES
        return [
            mono[start : start + WINDOW_SAMPLES] for start in range(0, min(len(mono), stop), WINDOW_SAMPLES)
        ]

    def _chunks(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """Indices of windows that run together: they have the same length and fit into memory."""
        lengths = [WINDOW_TOKENS if self.window == "padded" else count for count in tokens]
        return batches(lengths, _TOKENS_AT_ONCE.on(self._device))

    def _window_means(self, windows: Sequence[np.ndarray], tokens: Sequence[int]) -> Tensor:
        """`_means` of W windows of one length, each with its own valid tokens: (W, n_layer + 1, dim) float32."""
        length = WINDOW_TOKENS if self.window == "padded" else tokens[0]
        # The convolution of the last token covers its two frames and the next frame.
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
    """WhisperCLIP: the means over time of Whisper's blocks, before the final LayerNorm, fused into one vector.

    Attributes:
        layer_weights: (L,) weights for the fusion "weighted_sum", before the softmax. Zeros mean equal weights.
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
        """Number of blocks for the fusion "last_n", else None."""
        return self._fusion.n

    def set_fusion(self, fusion: FusionName, n: int | None = None) -> None:
        """Change the fusion.

        Raises:
            ValueError: for an unknown fusion, and for an `n` that is missing, unwanted, or above the number of blocks.
        """
        chosen = Fusion(fusion, n)
        chosen.check_blocks(self.n_layer, self.checkpoint)
        self._fusion = chosen

    def set_layer_weights(self, layer_weights: Tensor) -> None:
        """Set learned weights for "weighted_sum".

        Args:
            layer_weights: (n_layer,) before the softmax, block 1 first.

        Raises:
            ValueError: for a wrong shape, or values that aren't finite.
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
        """Fuse the result of `layer_means`. Gradients flow to `layer_weights`.

        Args:
            layer_means: (B, n_layer, dim) float32.

        Returns:
            (B, dim) float32.
        """
        return self._fusion(layer_means, self.layer_weights)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self.fuse(self._means(waveforms)[:, :-1])


def _mean_time(states: Tensor, tokens: Sequence[int]) -> Tensor:
    """(W, S, dim) to (W, dim) float32: the mean over the first tokens of each row."""
    return torch.stack([row[:count].float().mean(dim=0) for row, count in zip(states, tokens, strict=True)])
