"""Whisper's input: the log-mel spectrogram of a window of 30 seconds."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLING_RATE = 16_000  # Hz
N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms: one frame
SAMPLES_PER_TOKEN = 2 * HOP  # 20 ms: the second convolution has stride 2
WINDOW_SAMPLES = 30 * SAMPLING_RATE
WINDOW_FRAMES = WINDOW_SAMPLES // HOP  # 3000
WINDOW_TOKENS = WINDOW_SAMPLES // SAMPLES_PER_TOKEN  # 1500

_SILENCE = -10.0  # log10 of the floor, 1e-10


def token_count(samples: int) -> int:
    """Number of valid tokens: the tokens that the first `samples` of a window reach."""
    return min(-(-samples // SAMPLES_PER_TOKEN), WINDOW_TOKENS)


def log_mel(waveform: Tensor, n_mels: int, frames: int = WINDOW_FRAMES) -> Tensor:
    """Compute the first frames of the log-mel spectrogram of a sound that is padded with silence to 30 s.

    The numbers are those of the whole padded window. The transform stops where only silence is left, since all frames
    there are the same constant.

    Args:
        waveform: (samples,) mono at 16 kHz, 1 to 480,000 samples; computed in float32.
        n_mels: number of frequency bins, 80 or 128 in the released checkpoints.
        frames: number of frames to return, up to 3000.

    Returns:
        (n_mels, frames) float32 on the waveform's device.
    """
    # The last frame with sound is centred up to 199 samples after its end. One additional token covers it, and
    # keeps the reflection at the end of the transform in the silence.
    heard = min(2 * token_count(len(waveform)) + 2, WINDOW_FRAMES)
    signal = F.pad(waveform.float(), (0, heard * HOP - len(waveform)))
    window = torch.hann_window(N_FFT, device=signal.device)
    spectrum = torch.stft(signal, N_FFT, HOP, window=window, return_complex=True)[:, :-1]
    power = _mel_filters(n_mels).to(signal.device) @ spectrum.abs() ** 2
    log_power = power.clamp(min=10**_SILENCE).log10()
    loudest = log_power.max()  # also of the whole window, since silence is never louder
    log_power = F.pad(log_power, (0, max(frames - heard, 0)), value=_SILENCE)[:, :frames]
    return (log_power.maximum(loudest - 8.0) + 4.0) / 4.0


@lru_cache
def _mel_filters(n_mels: int) -> Tensor:
    """(n_mels, 201) triangular filters from 0 to 8 kHz on Slaney's scale, each of unit area."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T).float().contiguous()
