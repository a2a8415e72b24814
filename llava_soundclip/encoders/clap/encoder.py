"""CLAP: the audio encoder of LAION's contrastive language-audio models."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_soundclip.encoders.base import AtOnce, AudioEncoder, EncoderCard, LoadOptions
from llava_soundclip.encoders.checkpoints import check_checkpoint
from llava_soundclip.encoders.clap.frontend import (
    SAMPLING_RATE,
    WINDOW_SAMPLES,
    Crops,
    fused_input,
    plain_input,
    quantised,
)
from llava_soundclip.encoders.clap.towers import TOWERS, CLAPTower, laion_htsat
from llava_soundclip.encoders.clap.weights import KNOWN, CLAPWeights, read_checkpoint

Backend = Literal["transformers", "laion"]

_WINDOWS_AT_ONCE = AtOnce(cpu=2, accelerator=32)


@dataclass(frozen=True, kw_only=True)
class CLAPOptions(LoadOptions):
    """Options of `CLAPEncoder.load`.

    Attributes:
        checkpoint: Hub id ("laion/clap-htsat-unfused", "laion/larger_clap_music"), name of one of LAION's files on
            the Hub ("630k-audioset-best.pt"), transformers folder, or file. The size and the fusion are read from
            the weights.
        backend: library whose module runs: "transformers", or "laion" (the extra `clap`).
    """

    checkpoint: str | PathLike[str] = "laion/clap-htsat-unfused"
    backend: Backend = "transformers"


class CLAPEncoder(AudioEncoder):
    """LAION's CLAP: HTSAT and its projection. Vectors have unit length, like the original's `get_audio_embedding`.

    A sound of up to 10 s is treated as in the original: its channels are averaged and its samples quantised to 16 bits.
    Then it is repeated as often as it fits, and padded with silence. For a longer sound the original takes random
    crops, so two runs differ. Here the same sound always gives the same vector:

    - Without fusion, the sound is cut into consecutive windows of 10 s. The last one is shorter, and is repeated
      like any short sound. The unit vectors of the windows are averaged with their lengths as weights, and the
      average is normalised.
    - With fusion, the network takes the whole spectrogram shrunk to 10 s, and three crops of 10 s: the first, the
      middle and the last. They are in the thirds from which the original draws (`crop_starts`). A sound that exceeds
      10 s by less than one frame counts as 10 s, as in the original. Up to that length the crops aren't used.

    The spectrogram and the first normalisation are always float32. With float16 weights a vector differs from the
    float32 vector by 0.1 % of its length (cosine 0.999999), with bfloat16 by 1 % (cosine 0.9999). This was measured
    with random weights on the recordings of `tests/encoders/clap/test_parity.py`.

    Attributes:
        tower: network; `tower.network` is the library's module.
        fused: True if the network fuses crops of a long sound.
    """

    name: ClassVar[str] = "clap"
    sampling_rate = SAMPLING_RATE
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="512",
        window="10 s; longer sounds in windows, averaged; fused: the whole sound and three crops",
        code="CC0-1.0",
        weights="Apache-2.0 (laion/clap-htsat-*); none stated for LAION's .pt files",
        source=f"Hub: {CLAPOptions.checkpoint}",
    )

    def __init__(self, weights: CLAPWeights, options: CLAPOptions | None = None) -> None:
        super().__init__()
        options = options or CLAPOptions()
        self.tower: CLAPTower = TOWERS[options.backend](weights, options.torch_dtype)
        self.checkpoint = weights.identity
        self.dim = weights.dim
        self.fused = weights.fused

    @classmethod
    def load(cls, **options: Any) -> "CLAPEncoder":
        """Build the encoder from a checkpoint.

        Args:
            **options: options of `CLAPOptions`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an unknown value of an option (before anything is read), and for a checkpoint that is
                truncated, foreign or contains code.
            OSError: if the checkpoint doesn't exist, or the Hub can't be reached.
            ImportError: if laion_clap isn't installed; the message has the pip line.
        """
        chosen = CLAPOptions.given(**options)
        check_checkpoint(chosen.checkpoint, KNOWN, "CLAP")
        if chosen.backend == "laion":
            laion_htsat()
        return cls(read_checkpoint(chosen.checkpoint, chosen.revision), chosen).to(chosen.device)

    def _embed(self, waveforms: Sequence[np.ndarray], crops: Crops | None = None) -> Tensor:
        """(B, dim) float32. `crops` has the starts of the crops of longer sounds, for a network with fusion."""
        windows = [(i, window) for i, waveform in enumerate(waveforms) for window in self._windows(waveform)]
        device = self._device
        totals = torch.zeros(len(waveforms), self.dim, device=device)
        size = _WINDOWS_AT_ONCE.on(device)
        for start in range(0, len(windows), size):
            chunk = windows[start : start + size]
            inputs = [self._input(window, crops) for _, window in chunk]
            mel = torch.stack([mel for mel, _ in inputs]).to(device)
            longer = torch.tensor([longer for _, longer in inputs], device=device)
            vectors = F.normalize(self.tower(mel, longer).float(), dim=-1)
            for (i, window), vector in zip(chunk, vectors, strict=True):
                totals[i] += len(window) / WINDOW_SAMPLES * vector
        return F.normalize(totals, dim=-1)

    def _windows(self, waveform: np.ndarray) -> list[Tensor]:
        """Average the channels of (channels, samples) and cut the result into the network's windows."""
        mono = torch.from_numpy(waveform.mean(axis=0, dtype=np.float32))
        return [mono] if self.fused else list(mono.split(WINDOW_SAMPLES))

    def _input(self, window: Tensor, crops: Crops | None) -> tuple[Tensor, bool]:
        """(channels, 1001, 64) float32 of a window, and True if the window is longer than 10 s."""
        signal = quantised(window)
        return fused_input(signal, crops) if self.fused else (plain_input(signal), False)
