"""Sounds as arrays: checks, conversion to one form, resampling."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MAX_RATE = 768_000  # Hz, the highest rate of audio interfaces and formats
QUALITY = "HQ"  # soxr's quality for all resampling

_MAX_CHANNELS = 64  # more "channels" are a sign of a (samples, channels) array
_MAX_PEAK = 8.0  # float sound may slightly exceed 1; far more is a sign of integer samples


def check_waveform(waveform: "np.ndarray | Tensor", *, name: str = "sound") -> np.ndarray:
    """Check a sound that is an array, and convert it to the usual form.

    Args:
        waveform: numpy or torch (any device), (samples,) or (channels, samples), in float16, float32, float64 or
            bfloat16 in [-1, 1]. It isn't changed, but the result may share its memory.
        name: name of the sound in error messages.

    Returns:
        (channels, samples) float32, C-contiguous and writeable.

    Raises:
        TypeError: if it isn't an array of floats.
        ValueError: for no samples, a wrong number of axes, NaN or infinity, samples far outside [-1, 1],
            or axes that look swapped. The message says how to fix it.
    """
    if hasattr(waveform, "detach"):  # a torch tensor; torch needn't be imported
        tensor = waveform.detach().cpu()
        waveform = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(waveform, np.ndarray):
        raise TypeError(f"{name} must be a numpy or torch array of floats, not {type(waveform).__name__}")
    if np.issubdtype(waveform.dtype, np.integer):
        peak = f"{float(np.iinfo(waveform.dtype).max) + 1:.0f}"
        raise TypeError(
            f"{name} holds {waveform.dtype}, but must be float in [-1, 1]: "
            f"divide by {peak} (sound.astype('float32') / {peak})"
        )
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"{name} holds {waveform.dtype}, but must be float in [-1, 1]")
    if waveform.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {waveform.shape}: give (samples,) or (channels, samples)")
    if waveform.size == 0:
        raise ValueError(f"{name} is empty: its shape is {waveform.shape}")
    if waveform.ndim == 2 and waveform.shape[0] > _MAX_CHANNELS:
        raise ValueError(
            f"{name} has shape {waveform.shape}, {waveform.shape[0]} channels: "
            "the axes are (channels, samples), so transpose it (sound.T)"
        )
    low, high = float(waveform.min()), float(waveform.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinity")
    if max(-low, high) > _MAX_PEAK:
        raise ValueError(
            f"{name} reaches from {low:g} to {high:g}, far outside [-1, 1]: integer samples in a float "
            "array? Divide them by the integer type's range (32768 for int16)"
        )
    # Writeable, because torch warns about other arrays.
    return np.require(np.atleast_2d(waveform), np.float32, ["C", "W"])


def resample(waveform: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Resample each channel of a sound with soxr.

    Args:
        waveform: (channels, samples) float32.
        from_rate: rate of `waveform` in Hz.
        to_rate: rate of the result in Hz. For the same rate the result is `waveform` itself.

    Returns:
        (channels, samples') float32, at least one sample.

    Raises:
        ValueError: for a rate outside (0, 768000] Hz.
    """
    for rate in (from_rate, to_rate):
        check_rate(rate)
    if from_rate == to_rate:
        return waveform
    import soxr

    result = soxr.resample(np.ascontiguousarray(waveform.T), from_rate, to_rate, quality=QUALITY)
    if len(result) == 0:  # shorter than one sample at the new rate
        return waveform.mean(axis=1, keepdims=True)
    return np.ascontiguousarray(result.T)


def check_rate(rate: float) -> None:
    """Check a sampling rate.

    Raises:
        ValueError: if it is outside (0, 768000] Hz.
    """
    if isinstance(rate, bool) or not 0 < rate <= MAX_RATE:
        raise ValueError(f"a sampling rate must be in (0, {MAX_RATE}] Hz, not {rate!r}")
