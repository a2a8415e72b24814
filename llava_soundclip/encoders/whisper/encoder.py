"""Whisper and WhisperCLIP (section 3.2 of the paper): one vector out of Whisper's encoder."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from llava_soundclip._extras import require
from llava_soundclip.encoders.base import (
    AtOnce,
    AudioEncoder,
    DType,
    EncoderCard,
    Waveform,
    batches,
    check_choice,
    check_dtype,
)
from llava_soundclip.encoders.whisper.formats import check_checkpoint, read_checkpoint
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
Fusion = Literal["average_all", "final_only", "middle_only", "last_n", "weighted_sum"]

_TOKENS_AT_ONCE = AtOnce(cpu=2 * WINDOW_TOKENS, accelerator=16 * WINDOW_TOKENS)


class WhisperEncoder(AudioEncoder):
    """Whisper's last block, as Whisper itself uses it: after the final LayerNorm. The mean over time.

    Attributes:
        tower: the encoder module; `tower.states` runs it block by block.
        n_layer: blocks (L of the paper).
        pooling: "valid" averages over the tokens that the sound reaches, "all" over the whole window.
        window: "padded" fills 30 s up with silence as Whisper does, "clip" encodes the sound alone.
        long: what becomes of a sound above 30 s: "windows" averages over its windows by their valid
            tokens, "trim" keeps the first window, as the original does.
    """

    name: ClassVar[str] = "whisper"
    sampling_rate = SAMPLING_RATE
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="384 to 1280",
        window="30 s, of longer sounds windows, averaged",
        code="MIT",
        weights="MIT",
        source="Hub: openai/whisper-small",
    )

    def __init__(
        self,
        weights: WhisperWeights,
        *,
        backend: Backend = "transformers",
        dtype: torch.dtype = torch.float32,
        pooling: Pooling = "valid",
        window: Window = "padded",
        long: Long = "windows",
    ) -> None:
        super().__init__()
        self.tower: WhisperTower = TOWERS[backend](weights, dtype)
        self.checkpoint = weights.identity
        self.dim = weights.n_state
        self.n_mels = weights.n_mels
        self.n_layer = weights.n_layer
        self.pooling = pooling
        self.window = window
        self.long = long

    @classmethod
    def load(
        cls,
        *,
        checkpoint: str | PathLike[str] | None = "small",
        backend: Backend | None = "transformers",
        device: str | torch.device | None = None,
        dtype: DType | torch.dtype | None = None,
        pooling: Pooling = "valid",
        window: Window = "padded",
        long: Long = "windows",
        revision: str | None = None,
    ) -> "WhisperEncoder":
        """Build the encoder from a checkpoint.

        Args:
            checkpoint: a Whisper name ("tiny.en", "small", "large-v3", "turbo"; its weights come from the
                Hub with either backend), a Hub id, a transformers folder, an openai-whisper `.pt`, or a
                CTranslate2 folder. "small" by default: the paper asks for no smaller one (B.2).
            backend: whose module runs: "transformers" (the default), or "openai" (the extra `whisper`).
            device: where it runs; the CPU by default.
            dtype: of the weights and the hidden states, float32 by default; the spectrogram and the means
                are float32 in any case.
            pooling: "valid" or "all" tokens; see the class.
            window: "padded" or "clip"; see the class.
            long: "windows" or "trim"; see the class.
            revision: branch, tag or commit on the Hub.

        Raises:
            ValueError: for an option that isn't one of these (before anything is read), or a checkpoint that
                is cut, foreign or holds code.
            OSError: if the checkpoint isn't there, or the Hub can't be reached.
            ImportError: if openai-whisper isn't installed; the message has the pip line.
        """
        checkpoint = "small" if checkpoint is None else checkpoint
        backend = "transformers" if backend is None else backend
        check_choice("backend", backend, Backend)
        check_choice("pooling", pooling, Pooling)
        check_choice("window", window, Window)
        check_choice("long", long, Long)
        if window == "clip" and pooling == "all":
            raise ValueError(
                'pooling="all" averages over the padding, and window="clip" has none: use pooling="valid"'
            )
        checked_dtype = check_dtype(dtype)
        check_checkpoint(checkpoint)
        if backend == "openai":
            require("whisper", extra="whisper")
        weights = read_checkpoint(checkpoint, revision)
        encoder = cls(
            weights, backend=backend, dtype=checked_dtype, pooling=pooling, window=window, long=long
        )
        return encoder.to(device)

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
            return torch.empty(0, self.n_layer, self.dim)
        return self._means(self._prepare(waveforms, sampling_rate))[:, :-1]

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self._means(waveforms)[:, -1]

    def _means(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """(B, n_layer + 1, dim) float32: every block's mean, then the last one's after the final LayerNorm."""
        windows = [(i, window) for i, waveform in enumerate(waveforms) for window in self._windows(waveform)]
        tokens = [token_count(len(window)) for _, window in windows]
        device = self.tower.positions.device
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
        return batches(lengths, _TOKENS_AT_ONCE.on(self.tower.positions.device))

    def _window_means(self, windows: Sequence[np.ndarray], tokens: Sequence[int]) -> Tensor:
        """(W, n_layer + 1, dim) float32 of W windows that run together, each with its own valid tokens."""
        length = WINDOW_TOKENS if self.window == "padded" else tokens[0]
        # The last token's convolution reaches one frame further than its own two.
        frames = min(2 * length + 1, WINDOW_FRAMES)
        device = self.tower.positions.device
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
        fusion: "average_all" is the paper's choice (the mean over all blocks); "final_only"; "middle_only"
            (block L // 2, counted from 1); "last_n" (the mean of the last n); "weighted_sum" (softmax
            weights, learned together with a projector).
        n: how many blocks "last_n" takes, else None.
        layer_weights: (L,) of "weighted_sum", before the softmax; zeros weigh all blocks alike.
    """

    name: ClassVar[str] = "whisperclip"
    layer_weights: nn.Parameter

    def __init__(self, weights: WhisperWeights, **options: Any) -> None:
        super().__init__(weights, **options)
        self.layer_weights = nn.Parameter(torch.zeros(self.n_layer))
        self.set_fusion("average_all")

    @classmethod
    def load(
        cls, *, fusion: Fusion = "average_all", n: int | None = None, **options: Any
    ) -> "WhisperCLIPEncoder":
        """Build the encoder from a checkpoint.

        Args:
            fusion: which blocks, and how; see the class.
            n: for "last_n".
            **options: those of `WhisperEncoder.load`.

        Raises:
            ValueError: also for an unknown fusion, and an `n` that is missing, not wanted, or above the
                blocks.
        """
        check_fusion(fusion, n)
        encoder = cast(WhisperCLIPEncoder, super().load(**options))
        encoder.set_fusion(fusion, n)
        return encoder

    def set_fusion(self, fusion: Fusion, n: int | None = None) -> None:
        """Fuse in another way from now on.

        Raises:
            ValueError: for an unknown fusion, and an `n` that is missing, not wanted, or above the blocks.
        """
        check_fusion(fusion, n)
        if n is not None and n > self.n_layer:
            raise ValueError(f"n={n} is above the {self.n_layer} blocks of {self.checkpoint}")
        self.fusion = fusion
        self.n = n

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
        fusion = self.fusion if self.n is None else f"{self.fusion}:{self.n}"
        return {**super().signature(), "fusion": fusion}

    def fuse(self, layer_means: Tensor) -> Tensor:
        """Fuse what `layer_means` gave; gradients flow to `layer_weights`.

        Args:
            layer_means: (B, n_layer, dim) float32.

        Returns:
            (B, dim) float32.
        """
        return fuse_layers(layer_means, self.fusion, self.n, self.layer_weights)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return self.fuse(self._means(waveforms)[:, :-1])


def fuse_layers(
    layer_means: Tensor, fusion: Fusion, n: int | None = None, layer_weights: Tensor | None = None
) -> Tensor:
    """One vector out of the blocks' means (Table 8).

    Args:
        layer_means: (B, L, dim) float32, block 1 first.
        fusion: see `WhisperCLIPEncoder`.
        n: for "last_n".
        layer_weights: (L,) before the softmax, for "weighted_sum"; gradients flow to it.

    Returns:
        (B, dim) float32.
    """
    if fusion == "final_only":
        return layer_means[:, -1]
    if fusion == "middle_only":
        return layer_means[:, max(layer_means.shape[1] // 2, 1) - 1]
    if fusion == "last_n":
        return layer_means[:, -cast(int, n) :].mean(dim=1)
    if fusion == "weighted_sum":
        return torch.einsum("l,bld->bd", cast(Tensor, layer_weights).float().softmax(dim=0), layer_means)
    return layer_means.mean(dim=1)


def _mean_time(states: Tensor, tokens: Sequence[int]) -> Tensor:
    """(W, dim) float32: the mean of (W, S, dim) over each row's first tokens."""
    return torch.stack([row[:count].float().mean(dim=0) for row, count in zip(states, tokens, strict=True)])


def check_fusion(fusion: object, n: object) -> None:
    check_choice("fusion", fusion, Fusion)
    if fusion != "last_n":
        if n is not None:
            raise ValueError(f'n={n!r} is for fusion="last_n" only, and fusion is {fusion!r}')
    elif not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f'fusion="last_n" needs n, the number of last blocks, from 1 on; n is {n!r}')
