"""The interface that all audio encoders share, and the base of their options."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

Waveform: TypeAlias = np.ndarray | Tensor  # float in [-1, 1], (samples,) or (channels, samples)
DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class EncoderCard:
    """Facts about an encoder that `llava-soundclip encoders` shows without loading it.

    Attributes:
        dim: d_a, or the range of d_a over the sizes.
        window: length of sound that the model takes at once, and the treatment of longer sounds.
        code: licence of the original code.
        weights: licence of the published weights.
        source: origin of the default checkpoint.
    """

    dim: str
    window: str
    code: str
    weights: str
    source: str


class AudioEncoder(nn.Module, ABC):
    """Base class of encoders that turn a sound into one vector (z_a of Algorithm 1, line 1).

    A subclass sets the class attributes, loads itself in `load` and encodes in `_embed`. This class checks
    and resamples the sounds.

    Attributes:
        name: value that users pass as `encoder=`.
        sampling_rate: sampling rate of the input of `_embed`, in Hz.
        dim: d_a, the width of a vector.
        checkpoint: short name of the weights, the same for every file format.
        card: facts for the list of encoders; optional.
        resamples: True if `_resample` is overridden. Files are then decoded at their own rates.
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
        """Build the encoder from a checkpoint. Each subclass defines its own keyword options.

        `*args` is for type checkers only: it lets a subclass name its options.
        """

    @abstractmethod
    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """Encode B sounds, each float32 (channels, samples) at `sampling_rate`, to (B, dim) float32."""

    def signature(self) -> Mapping[str, str]:
        """Keys and values that a projector compares with those of its training."""
        return {"encoder": self.name, "checkpoint": self.checkpoint}

    @property
    def decoding_rate(self) -> int | None:
        """Sampling rate in Hz at which files are decoded for this encoder; None for each file's own rate."""
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
            sampling_rate: rate in Hz of all waveforms, or one rate per waveform. Waveforms with another rate than
                the encoder's are resampled, with soxr or as the encoder's original does.

        Returns:
            (B, dim) float32 on the encoder's device. A sound's vector doesn't depend on its batch.

        Raises:
            TypeError: if a waveform isn't an array of floats.
            ValueError: if a waveform is empty, has a wrong shape or holds NaN or infinity; the message names its
                index. Also if the numbers of rates and sounds differ, or a vector isn't finite.
        """
        if not waveforms:
            return torch.empty(0, self.dim, device=self._device)
        vectors = self._embed(self._prepare(waveforms, sampling_rate))
        if not vectors.isfinite().all():
            raise ValueError(
                f"{self.name} makes NaN or infinity of it: its weights are damaged, or too large for its precision"
            )
        return vectors

    def _prepare(self, waveforms: Sequence[Waveform], sampling_rate: int | Sequence[int]) -> list[np.ndarray]:
        """Check and resample sounds for `embed`: float32 (channels, samples) at the encoder's rate."""
        from llava_soundclip.media import check_waveform

        checked = [check_waveform(waveform, name=f"sound {i}") for i, waveform in enumerate(waveforms)]
        rates = sampling_rate if isinstance(sampling_rate, Sequence) else [sampling_rate] * len(checked)
        if len(rates) != len(checked):
            raise ValueError(
                f"{len(checked)} sounds and {len(rates)} sampling rates: give one rate for all, or one per sound"
            )
        return [self._resample(waveform, rate) for waveform, rate in zip(checked, rates, strict=True)]

    def _resample(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Resample to the encoder's rate. Override this if the original's resampling matters."""
        from llava_soundclip.media import resample

        return resample(waveform, sampling_rate, self.sampling_rate)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of an encoder's `load`, with their defaults. A subclass adds its own and the default checkpoint.

    None means the default. An option whose type is a Literal takes only its values.

    Attributes:
        checkpoint: name of a published checkpoint, file, folder or Hub id.
        device: device of the encoder; by default the CPU.
        dtype: dtype of the weights and hidden states.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: for an unknown value of an option.
    """

    checkpoint: str | PathLike[str]
    device: str | torch.device | None = None
    dtype: DType | torch.dtype = "float32"
    revision: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.default is not MISSING:
                object.__setattr__(self, field.name, field.default)  # the only way in a frozen class
            if get_origin(field.type) is Literal:
                check_choice(field.name, getattr(self, field.name), field.type)
        check_dtype(self.dtype)

    @classmethod
    def given(cls, **options: Any) -> "Self":
        """The options by name.

        Raises:
            TypeError: for an unknown name; the known ones are listed.
        """
        known = [field.name for field in fields(cls)]
        unknown = [repr(name) for name in options if name not in known]
        if unknown:
            raise TypeError(f"unknown option of the encoder: {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**options)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype; float32 for None."""
        return check_dtype(self.dtype)


@dataclass(frozen=True)
class AtOnce:
    """Largest size of a batch, in the encoder's own unit. It bounds the memory.

    Large batches are slower on a CPU, small ones on an accelerator.

    Attributes:
        cpu: size on a CPU.
        accelerator: size on any other device.
    """

    cpu: int
    accelerator: int

    def on(self, device: torch.device) -> int:
        """The size for a device."""
        return self.cpu if device.type == "cpu" else self.accelerator


def batches(lengths: Sequence[int], at_once: int) -> Iterator[list[int]]:
    """Group inputs into batches that have one length and fit into memory.

    Args:
        lengths: lengths of the inputs.
        at_once: largest sum of lengths in a batch; a longer input runs alone.

    Yields:
        Indices of the inputs of a batch; each index once.
    """
    for length in sorted(set(lengths)):
        alike = [i for i, other in enumerate(lengths) if other == length]
        size = max(at_once // length, 1)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuse a value that isn't in a Literal.

    Raises:
        ValueError: for an unknown value; the message lists the known values.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{option}={value!r} is unknown; known: {', '.join(map(str, known))}")


def check_dtype(dtype: object) -> torch.dtype:
    """The dtype of an encoder's weights, from a name or a torch dtype; float32 for None.

    Raises:
        ValueError: for a dtype other than float32, float16 and bfloat16.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    check_choice("dtype", name, DType)
    return getattr(torch, name)
