"""The one interface that audio encoders share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Waveform: TypeAlias = np.ndarray | Tensor  # float in [-1, 1], (samples,) or (channels, samples)


class AudioEncoder(nn.Module, ABC):
    """Turns sounds into one vector each (z_a of Algorithm 1, line 1).

    A subclass sets the class attributes, loads itself in `load` and encodes in `_embed`. The checks and
    the resampling that every encoder needs are here.

    Attributes:
        name: what users pass as `encoder=`.
        sampling_rate: Hz that `_embed` takes.
        dim: d_a, the width of a vector.
        checkpoint: which weights these are, the same for one checkpoint in any file format.
    """

    name: ClassVar[str]
    sampling_rate: int
    dim: int
    checkpoint: str

    @classmethod
    @abstractmethod
    def load(cls, *args: Any, **options: Any) -> "AudioEncoder":
        """Build the encoder from a checkpoint. Options are keyword-only and the subclass's own.

        (`*args` is there for type checkers only: with it they let a subclass name its options.)
        """

    @abstractmethod
    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """(B, dim) float32 of B sounds, each float32 (channels, samples) at `sampling_rate`."""

    def signature(self) -> Mapping[str, str]:
        """What a projector must have been trained on to fit: its keys and values are compared."""
        return {"encoder": self.name, "checkpoint": self.checkpoint}

    @torch.no_grad()
    def embed(self, waveforms: Sequence[Waveform], sampling_rate: int) -> Tensor:
        """Encode sounds of any lengths.

        Args:
            waveforms: B sounds, each float in [-1, 1], (samples,) or (channels, samples). The encoder
                mixes channels down as its original does.
            sampling_rate: Hz of the waveforms; another one than the encoder's is resampled (soxr, HQ).

        Returns:
            (B, dim) float32 on the encoder's device. A batch equals single runs.

        Raises:
            TypeError: if a waveform isn't an array of floats.
            ValueError: if one is empty, has a wrong shape or holds NaN or infinity; its index is named.
        """
        if not waveforms:
            return torch.empty(0, self.dim)
        return self._embed(self._prepare(waveforms, sampling_rate))

    def _prepare(self, waveforms: Sequence[Waveform], sampling_rate: int) -> list[np.ndarray]:
        """The checks and the resampling of `embed`: float32 (channels, samples) at the encoder's rate."""
        from llava_soundclip.media import check_waveform, resample

        checked = [check_waveform(waveform, name=f"sound {i}") for i, waveform in enumerate(waveforms)]
        return [resample(waveform, sampling_rate, self.sampling_rate) for waveform in checked]
