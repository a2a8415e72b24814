"""CLAP's input: log-mel spectrograms of 10 seconds at 48 kHz, computed in float32 on the CPU.

The numbers are therefore the same for every device. Some devices also lack the antialiased resize.
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
WINDOW_FRAMES = WINDOW_SAMPLES // HOP + 1  # 1001: the first and the last frame are centred on the ends

_LOWEST, _HIGHEST = 50.0, 14_000.0  # Hz
_FLOOR = 1e-10  # of the power: -100 dB
_PEAK = 32_767  # of 16-bit samples
_FRAMES_AT_ONCE = WINDOW_FRAMES  # bounds the memory of an hour of sound

Crops = tuple[int, int, int]  # first frames of the three crops


def quantised(waveform: Tensor) -> Tensor:
    """Quantise to 16 bits, as in the original's training: clip to [-1, 1] and truncate towards zero.

    Args:
        waveform: float32 of any shape.

    Returns:
        float32 of the same shape.
    """
    return waveform.clamp(-1.0, 1.0).mul_(_PEAK).trunc_().div_(_PEAK)  # in place: an hour is 700 MB per copy


def repeat_pad(waveform: Tensor) -> Tensor:
    """Repeat a sound as often as it completely fits into 10 s, then pad with silence.

    Args:
        waveform: (samples,) float32, 1 to 480,000 samples.

    Returns:
        (480000,) float32.
    """
    repeated = waveform.repeat(WINDOW_SAMPLES // len(waveform))
    return F.pad(repeated, (0, WINDOW_SAMPLES - len(repeated)))


def log_mel(signal: Tensor, *, fused: bool) -> Tensor:
    """The log-mel spectrogram of a signal, in dB.

    Args:
        signal: (samples,) float32, more than 512 samples.
        fused: True for the filters of networks with fusion (HTK's scale, equal height), False for those of other
            networks (Slaney's scale, equal area).

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
    """Input of a network without fusion: one spectrogram.

    Args:
        signal: (samples,) quantised, 1 to 480,000 samples.

    Returns:
        (1, 1001, 64) float32.
    """
    return log_mel(repeat_pad(signal), fused=False)[None]


def fused_input(signal: Tensor, crops: Crops | None = None) -> tuple[Tensor, bool]:
    """Input of a network with fusion: the whole sound in one spectrogram, and three crops.

    Args:
        signal: (samples,) quantised, of any length.
        crops: first frames of the crops of a sound above 10 s; `crop_starts` by default.

    Returns:
        (4, 1001, 64) float32, and True if the sound is longer than one window. Otherwise all four are the
        same, and the network uses the first only.
    """
    if len(signal) <= WINDOW_SAMPLES:
        signal = repeat_pad(signal)
    mel = log_mel(signal, fused=True)
    if len(mel) == WINDOW_FRAMES:  # also for up to 479 samples above 10 s
        return mel.expand(4, -1, -1), False
    starts = crop_starts(len(mel)) if crops is None else crops
    return torch.stack([_shrunk(mel), *(mel[start : start + WINDOW_FRAMES] for start in starts)]), True


def crop_starts(frames: int) -> Crops:
    """First frames of the three crops of a long sound.

    The original divides the possible first frames into three equal parts and draws one frame from each. This function
    takes the first frame of the first part, the middle of the second and the last of the third. So the crops reach
    both ends, and cover a sound of up to 30 s.

    Args:
        frames: number of frames of the whole sound, above 1001.
    """
    front, middle, back = np.array_split(np.arange(frames - WINDOW_FRAMES + 1), 3)
    # With 1002 frames the third part is empty, and the original takes 0.
    return int(front[0]), int(middle[len(middle) // 2]), int(back[-1]) if len(back) else 0


def _shrunk(mel: Tensor) -> Tensor:
    """Shrink (frames, 64) to (1001, 64) with antialiasing."""
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
