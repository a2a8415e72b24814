"""Input of ImageBind's audio tower: three windows of a sound as Kaldi filter banks.

Written from a description of the original's behaviour (`frontend` of the goldens), without reading its code, which is
CC-BY-NC-SA.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLING_RATE = 16_000  # Hz
WINDOW = 2 * SAMPLING_RATE  # samples of one window
WINDOWS = 3
FRAME, SHIFT, FFT = 400, 160, 512  # samples: 25 ms every 10 ms, padded for the transform
FRAMES, MELS = 204, 128
MEAN, SCALE = -4.268, 9.138

_LOWEST, _HIGHEST = 20.0, 8000.0  # Hz
_PRE_EMPHASIS = 0.97
_FLOOR = 2.0**-23  # of an energy, before the logarithm
_CUTOFF_WIDTH, _ROLLOFF = 6, 0.99  # the resampler's zero crossings, its share of the lower Nyquist frequency
_KERNEL_VALUES = 2**22  # kernel values at a time, since an odd rate would need gigabytes


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample by windowed sinc interpolation, as torchaudio's `resample` does with its defaults.

    Args:
        waveform: (channels, samples) float32.
        from_rate: Hz of `waveform`.
        to_rate: Hz of the result.

    Returns:
        (channels, ceil(samples * to_rate / from_rate)) float32.
    """
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    step, phases = from_rate // common, to_rate // common  # `phases` outputs per `step` input samples
    cutoff = min(step, phases) * _ROLLOFF
    reach = math.ceil(_CUTOFF_WIDTH * step / cutoff)
    padded = F.pad(waveform, (reach, reach + step))[:, None]
    rows = max(_KERNEL_VALUES // (2 * reach + step), 1)
    parts = []
    for first in range(0, phases, rows):
        kernel = _sinc_kernel(step, phases, reach, cutoff, first, min(first + rows, phases))
        parts.append(F.conv1d(padded, kernel.to(waveform.device), stride=step))
    length = math.ceil(waveform.shape[1] * to_rate / from_rate)
    return torch.cat(parts, dim=1).transpose(1, 2).flatten(1)[:, :length]


def _sinc_kernel(step: int, phases: int, reach: int, cutoff: float, first: int, stop: int) -> Tensor:
    """Weights of the inputs for some outputs of a step: (stop - first, 1, 2 * reach + step)."""
    inputs = torch.arange(-reach, reach + step, dtype=torch.float64) / step
    outputs = torch.arange(first, stop, dtype=torch.float64) / phases
    crossings = ((inputs - outputs[:, None]) * cutoff).clamp(-_CUTOFF_WIDTH, _CUTOFF_WIDTH)
    window = torch.cos(crossings * math.pi / _CUTOFF_WIDTH / 2) ** 2
    return (torch.sinc(crossings) * window * (cutoff / step)).float()[:, None]


def windows(samples: int) -> list[tuple[int, int]]:
    """Start and end (exclusive) of the three windows in samples: front, middle, back.

    For a sound shorter than 2 s, each of the three windows is the whole sound.
    """
    spare = max(samples - WINDOW, 0)
    return [(start, min(start + WINDOW, samples)) for start in (0, spare // 2, spare)]


def frontend(waveform: np.ndarray) -> Tensor:
    """Compute the network's input for one sound.

    The mean over all channels and samples of a window is subtracted from the sound in place, one window after
    another. So where windows overlap, the mean of the earlier one is also subtracted. Then the first channel is used.

    Args:
        waveform: (channels, samples) float32 at 16 kHz. A sound below 400 samples (25 ms, one frame), on which the
            original fails, is padded with zeros.

    Returns:
        (3, 1, 128, 204) float32: windows, mel rows, time columns.
    """
    sound = torch.from_numpy(waveform).clone()
    sound = F.pad(sound, (0, max(FRAME - sound.shape[1], 0)))
    banks = []
    for start, stop in windows(sound.shape[1]):
        window = sound[:, start:stop]
        window -= window.mean()
        bank = fbank(window[0])[:FRAMES]
        banks.append(F.pad(bank.T, (0, FRAMES - len(bank))))  # zeros before the normalisation
    return (torch.stack(banks)[:, None] - MEAN) / SCALE


def fbank(signal: Tensor) -> Tensor:
    """Kaldi's log filter banks of a signal in [-1, 1]: (samples,) float32 to (frames, 128)."""
    frames = signal.unfold(0, FRAME, SHIFT)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - _PRE_EMPHASIS * before) * torch.hann_window(FRAME, periodic=False)
    power = torch.fft.rfft(frames, FFT).abs() ** 2
    return (power @ _mel_filters().T).clamp(min=_FLOOR).log()


@lru_cache
def _mel_filters() -> Tensor:
    """(128, 257) triangular filters of equal width on the mel scale; the Nyquist bin has no weight."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log(1 + hertz / 700)

    low, high = mel(torch.tensor([_LOWEST, _HIGHEST], dtype=torch.float64))
    edges = low + (high - low) / (MELS + 1) * torch.arange(MELS + 2, dtype=torch.float64)
    bins = mel(torch.arange(FFT // 2, dtype=torch.float64) * SAMPLING_RATE / FFT)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return F.pad(triangles.clamp(min=0), (0, 1)).float()
