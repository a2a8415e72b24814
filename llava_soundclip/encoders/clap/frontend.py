"""CLAP's input: log-mel spectrograms of 10 seconds at 48 kHz, computed in float32 on the CPU.

The CPU gives the same numbers for every device, and some devices lack the smoothed resize.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLING_RATE = 48_000  # Hz
N_FFT = 1024  # samples, 21 ms
HOP = 480  # samples, 10 ms: one frame
N_MELS = 64
WINDOW_SAMPLES = 10 * SAMPLING_RATE
WINDOW_FRAMES = WINDOW_SAMPLES // HOP + 1  # 1001: the first and the last are centred on the ends

_LOWEST, _HIGHEST = 50.0, 14_000.0  # Hz
_FLOOR = 1e-10  # of the power: -100 dB
_PEAK = 32_767  # of 16-bit samples
_FRAMES_AT_ONCE = WINDOW_FRAMES  # bounds the memory of an hour of sound

Crops = tuple[int, int, int]  # first frames of the three crops


def quantised(waveform: Tensor) -> Tensor:
    """Samples as 16 bits hold them: clipped to [-1, 1] and cut towards zero. The original was trained so.

    Args:
        waveform: float32 of any shape.

    Returns:
        float32 of the same shape.
    """
    return waveform.clamp(-1.0, 1.0).mul_(_PEAK).trunc_().div_(_PEAK)  # an hour is 700 MB each time


def repeat_pad(waveform: Tensor) -> Tensor:
    """A sound of 10 s at most, repeated as often as it fits in 10 s whole, then silence.

    Args:
        waveform: (samples,), 1 to 480,000 samples.

    Returns:
        (480000,).
    """
    repeated = waveform.repeat(WINDOW_SAMPLES // len(waveform))
    return F.pad(repeated, (0, WINDOW_SAMPLES - len(repeated)))


def log_mel(signal: Tensor, *, fused: bool) -> Tensor:
    """The log-mel spectrogram of a signal, in dB.

    Args:
        signal: (samples,) float32, more than 512 samples.
        fused: whether the filters are the fused networks' (HTK's scale, equal height) or the others'
            (Slaney's scale, equal area).

    Returns:
        (samples // 480 + 1, 64) float32.
    """
    padded = F.pad(signal[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0]
    frames = len(signal) // HOP + 1
    window, filters = torch.hann_window(N_FFT), _mel_filters(fused)
    mel = torch.empty(frames, N_MELS)
    for first in range(0, frames, _FRAMES_AT_ONCE):
        last = min(first + _FRAMES_AT_ONCE, frames) - 1
        part = padded[first * HOP : last * HOP + N_FFT]
        spectrum = torch.stft(part, N_FFT, HOP, window=window, center=False, return_complex=True)
        mel[first : last + 1] = (filters @ spectrum.abs() ** 2).T
    return mel.clamp_(min=_FLOOR).log10_().mul_(10.0)


def plain_input(signal: Tensor) -> Tensor:
    """What a network without fusion takes: one spectrogram.

    Args:
        signal: (samples,) quantised, 1 to 480,000 samples.

    Returns:
        (1, 1001, 64) float32.
    """
    return log_mel(repeat_pad(signal), fused=False)[None]


def fused_input(signal: Tensor, crops: Crops | None = None) -> tuple[Tensor, bool]:
    """What a network with fusion takes: the whole sound in one spectrogram, and three crops of it.

    Args:
        signal: (samples,) quantised, of any length.
        crops: first frames of the crops of a sound above 10 s; those of `crop_starts` by default.

    Returns:
        (4, 1001, 64) float32, and whether the sound is longer than one window. If not, all four are the
        same, and the network looks at the first only.
    """
    if len(signal) <= WINDOW_SAMPLES:
        signal = repeat_pad(signal)
    mel = log_mel(signal, fused=True)
    if len(mel) == WINDOW_FRAMES:  # also of up to 479 samples above 10 s
        return mel.expand(4, -1, -1), False
    starts = crop_starts(len(mel)) if crops is None else crops
    return torch.stack([_shrunk(mel), *(mel[start : start + WINDOW_FRAMES] for start in starts)]), True


def crop_starts(frames: int) -> Crops:
    """Where the three crops of a long sound begin.

    The original divides the possible first frames into three equal parts and draws one from each. Here they
    are the first of the first part, the middle of the second and the last of the third: the crops reach both
    ends, and leave nothing out of a sound of up to 30 s.

    Args:
        frames: of the whole sound, above 1001.
    """
    front, middle, back = np.array_split(np.arange(frames - WINDOW_FRAMES + 1), 3)
    # Of 1002 frames the third part is empty; the original takes 0 then.
    return int(front[0]), int(middle[len(middle) // 2]), int(back[-1]) if len(back) else 0


def _shrunk(mel: Tensor) -> Tensor:
    """(frames, 64) as (1001, 64), smoothed as it shrinks."""
    size = (WINDOW_FRAMES, N_MELS)
    return F.interpolate(mel[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


@lru_cache
def _mel_filters(fused: bool) -> Tensor:
    """(64, 513) triangular filters from 50 Hz to 14 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=N_MELS,
        min_frequency=_LOWEST,
        max_frequency=_HIGHEST,
        sampling_rate=SAMPLING_RATE,
        norm=None if fused else "slaney",
        mel_scale="htk" if fused else "slaney",
    )
    return torch.from_numpy(filters.T).float().contiguous()
