"""The one interface that audio encoders share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import chain
from os import PathLike
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

Waveform: TypeAlias = np.ndarray | Tensor  # float in [-1, 1], (samples,) or (channels, samples)
DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class EncoderCard:
    """What `llava-soundclip encoders` says about an encoder without loading it.

    Attributes:
        dim: d_a, or d_a of the sizes that there are.
        window: how much of a sound the model takes at once, and what becomes of longer ones.
        code: licence of the original's code.
        weights: licence of its published weights.
        source: where they come from if no checkpoint is given.
    """

    dim: str
    window: str
    code: str
    weights: str
    source: str


class AudioEncoder(nn.Module, ABC):
    """Turns sounds into one vector each (z_a of Algorithm 1, line 1).

    A subclass sets the class attributes, loads itself in `load` and encodes in `_embed`. The checks and
    the resampling that every encoder needs are here.

    Attributes:
        name: what users pass as `encoder=`.
        sampling_rate: Hz that `_embed` takes.
        dim: d_a, the width of a vector.
        checkpoint: which weights these are, the same for one checkpoint in any file format.
        card: what the list of encoders says about it; an encoder of a user's own may have none.
        resamples: whether `_resample` is overridden, so that files are to be handed over at their own rates.
    """

    name: ClassVar[str]
    card: ClassVar[EncoderCard | None] = None
    resamples: ClassVar[bool] = False
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

    @property
    def decoding_rate(self) -> int | None:
        """Hz at which files are decoded for this encoder; None for each file's own rate."""
        return None if self.resamples else self.sampling_rate

    @property
    def _device(self) -> torch.device:
        """Device of the weights; the CPU for an encoder that has none."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @torch.no_grad()
    def embed(self, waveforms: Sequence[Waveform], sampling_rate: int | Sequence[int]) -> Tensor:
        """Encode sounds of any lengths.

        Args:
            waveforms: B sounds, each float in [-1, 1], (samples,) or (channels, samples). The encoder
                mixes channels down as its original does.
            sampling_rate: Hz of the waveforms, or of each; another one than the encoder's is resampled (soxr,
                HQ, or as the encoder's original does it).

        Returns:
            (B, dim) float32 on the encoder's device. A batch equals single runs.

        Raises:
            TypeError: if a waveform isn't an array of floats.
            ValueError: if one is empty, has a wrong shape or holds NaN or infinity; its index is named. If there
                is another number of rates than of sounds.
        """
        if not waveforms:
            return torch.empty(0, self.dim, device=self._device)
        return self._embed(self._prepare(waveforms, sampling_rate))

    def _prepare(self, waveforms: Sequence[Waveform], sampling_rate: int | Sequence[int]) -> list[np.ndarray]:
        """The checks and the resampling of `embed`: float32 (channels, samples) at the encoder's rate."""
        from llava_soundclip.media import check_waveform

        checked = [check_waveform(waveform, name=f"sound {i}") for i, waveform in enumerate(waveforms)]
        rates = sampling_rate if isinstance(sampling_rate, Sequence) else [sampling_rate] * len(checked)
        if len(rates) != len(checked):
            raise ValueError(
                f"{len(checked)} sounds and {len(rates)} sampling rates: give one for all, or one each"
            )
        return [self._resample(waveform, rate) for waveform, rate in zip(checked, rates, strict=True)]

    def _resample(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """A sound at the encoder's rate; overridden where the original's way of resampling matters."""
        from llava_soundclip.media import resample

        return resample(waveform, sampling_rate, self.sampling_rate)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of an encoder's `load`, with their defaults. A subclass adds its own and the default checkpoint.

    None stands for the default. An option whose type is a Literal takes that one's values only.

    Attributes:
        checkpoint: name of a published checkpoint, file, folder or Hub id.
        device: device of the encoder; the CPU by default.
        dtype: dtype of the weights and hidden states.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: for an option that isn't one of these values.
    """

    checkpoint: str | PathLike[str]
    device: str | torch.device | None = None
    dtype: DType | torch.dtype = "float32"
    revision: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not MISSING:
                object.__setattr__(self, field.name, field.default)  # the one way in a frozen class
            if get_origin(field.type) is Literal:
                check_choice(field.name, getattr(self, field.name), field.type)
        check_dtype(self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        return check_dtype(self.dtype)


@dataclass(frozen=True)
class AtOnce:
    """How much runs together, in whatever an encoder counts; it bounds the memory of a batch.

    On a CPU larger batches are slower, on an accelerator smaller ones.

    Attributes:
        cpu: on a CPU.
        accelerator: on anything else.
    """

    cpu: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        return self.cpu if device.type == "cpu" else self.accelerator


def batches(lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Inputs that run together: of one length, and few enough for the memory.

    Args:
        lengths: of the inputs.
        at_once: the sum of lengths that may run together; a longer input runs alone.

    Yields:
        Their indices; each index once.
    """
    for length in sorted(set(lengths)):
        alike = [i for i, other in enumerate(lengths) if other == length]
        size = max(at_once // length, 1)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuse an option that isn't one of a Literal's values.

    Raises:
        ValueError: with the values that there are.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{option}={value!r} is unknown; known: {', '.join(map(str, known))}")


def check_dtype(dtype: object) -> torch.dtype:
    """The dtype of an encoder's weights: float32 for None, else by name or as torch has it.

    Raises:
        ValueError: for another one than float32, float16 and bfloat16.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    check_choice("dtype", name, DType)
    return getattr(torch, name)
