"""Wav2CLIP: a ResNet-18 on the spectrogram of a whole sound, distilled from CLIP's image encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip.encoders.base import AtOnce, AudioEncoder, EncoderCard, LoadOptions, batches
from llava_soundclip.encoders.checkpoints import (
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.encoders.resnet import BasicBlock, ResNet, assign_weights
from llava_soundclip.fingerprints import fingerprint

KNOWN = {
    "Wav2CLIP.pt": "https://github.com/descriptinc/lyrebird-wav2clip/releases/download/v0.1.0-alpha/Wav2CLIP.pt"
}

_SAMPLING_RATE = 16_000  # Hz
_N_FFT = 512  # samples, 32 ms; 257 frequencies
_HOP = 353  # samples, 22 ms: one frame
_SHORTEST = _N_FFT // 2 + 1  # samples that the reflection at the ends needs
_DIM = 512

_STRIDE = 32  # frames per column of the network's output
_HALO = 7 * _STRIDE  # frames; a column sees 217 frames on either side of its first frame
_FRAMES_AT_ONCE = 4096  # 90 s; bounds the memory of an hour of sound
_BATCH = AtOnce(cpu=1024, accelerator=4 * _FRAMES_AT_ONCE)  # frames


@dataclass(frozen=True, kw_only=True)
class Wav2CLIPOptions(LoadOptions):
    """Options of `Wav2CLIPEncoder.load`.

    Attributes:
        checkpoint: "Wav2CLIP.pt" (the release on GitHub, stored in torch's cache), its file, a safetensors file
            with the same names, or a Hub id.
        dtype: dtype of the network; the spectrogram is always float32.
    """

    checkpoint: str | PathLike[str] = "Wav2CLIP.pt"


class Wav2CLIPEncoder(AudioEncoder):
    """Wav2CLIP: one vector per sound, after the projection and not normalised, as `embed_audio` returns it.

    Channels are averaged, as in the original's scripts (librosa). Its `embed_audio` treats a 2-D array as a
    batch. The log spectrogram is normalised over one sound. The original normalises over all sounds of a call, so that
    a sound's vector depends on its neighbours. This class gives the vector of a call with one sound.
    A sound below 257 samples, which the original refuses, is padded with zeros at its end. Silence is a
    spectrogram of zeros; in the original it is the magnified sign of a rounding error.

    A sound of any length gives one vector. Above 90 s the network runs on overlapping pieces, which gives the
    same numbers.

    The spectrogram is computed on the CPU in float32, its statistics in float64. With the network in float16
    the cosine to the float32 vectors is above 0.99999, in bfloat16 above 0.9999 (random weights).

    Attributes:
        audio_encoder: ResNet-18 without its head, under the checkpoint's names.
        audio_transform: projection, under the checkpoint's names.
    """

    name: ClassVar[str] = "wav2clip"
    sampling_rate = _SAMPLING_RATE
    dim = _DIM
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="512",
        window="the whole sound",
        code="MIT",
        weights="not stated (release of an MIT repository)",
        source="GitHub: descriptinc/lyrebird-wav2clip",
    )

    def __init__(
        self,
        state: Mapping[str, Tensor],
        options: Wav2CLIPOptions | None = None,
        *,
        source: object = "the state",
    ) -> None:
        """Build the network from weights under the original names.

        Args:
            state: tensors by name; copied.
            options: options; the defaults if None.
            source: file of the tensors, for messages.

        Raises:
            ValueError: if the tensors aren't Wav2CLIP's.
        """
        super().__init__()
        options = options or Wav2CLIPOptions()
        with torch.device("meta"):  # without memory or random numbers: the weights are replaced at once
            self.audio_encoder = ResNet(BasicBlock, (2, 2, 2, 2), 1)
            projection = (nn.Linear(_DIM, _DIM), nn.ReLU(), nn.Identity(), nn.Linear(_DIM, _DIM))
            self.audio_transform = nn.ModuleDict({"sequential": nn.Sequential(*projection)})
        assign_weights(self, state, source=source, what="Wav2CLIP audio encoder", dtype=options.torch_dtype)
        self.checkpoint = f"wav2clip-{fingerprint(state)}"

    @classmethod
    def load(cls, **options: Any) -> "Wav2CLIPEncoder":
        """Build the encoder from the audio part of a checkpoint.

        Args:
            **options: options of `Wav2CLIPOptions`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an unknown value of an option (before anything is read), and for a checkpoint that is
                truncated, foreign or contains code.
            OSError: if the checkpoint doesn't exist, or a server can't be reached.
        """
        chosen = Wav2CLIPOptions.given(**options)
        path = find_checkpoint(chosen.checkpoint, KNOWN, "Wav2CLIP", chosen.revision)
        state = read_tensors(path, ("audio_encoder.", "audio_transform."))
        return cls(state, chosen, source=path).to(chosen.device)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        device = self._device
        vectors = torch.empty(len(waveforms), _DIM, device=device)
        frames = [1 + max(waveform.shape[1], _SHORTEST) // _HOP for waveform in waveforms]
        for batch in batches(frames, _BATCH.on(device)):
            spectrograms = torch.stack([frontend(waveforms[i]) for i in batch])
            vectors[batch] = self._project(self._pool(spectrograms))
        return vectors

    def _pool(self, spectrograms: Tensor) -> Tensor:
        """(B, 1, 257, frames) to (B, 512) float32: the mean of the network's output over frequency and time."""
        device, frames = self._device, spectrograms.shape[-1]
        total, count = torch.zeros(len(spectrograms), _DIM, device=device), 0
        for start in range(0, frames, _FRAMES_AT_ONCE):
            halo = min(start, _HALO)
            stop = start + _FRAMES_AT_ONCE + _HALO
            features = self.audio_encoder(spectrograms[..., start - halo : stop].to(device))
            features = features[..., halo // _STRIDE :][..., : _FRAMES_AT_ONCE // _STRIDE]
            total += features.float().sum(dim=(2, 3))
            count += features[0, 0].numel()
        return total / count

    def _project(self, pooled: Tensor) -> Tensor:
        return self.audio_transform["sequential"](pooled.to(self.audio_encoder.conv1.weight.dtype)).float()


def frontend(waveform: np.ndarray) -> Tensor:
    """Compute the network's input.

    Args:
        waveform: (channels, samples) float32 at 16 kHz; channels are averaged.

    Returns:
        (1, 257, frames) float32 on the CPU: log power of mean 0 and standard deviation 1; zeros for silence.
    """
    mono = torch.from_numpy(waveform.mean(axis=0, dtype=np.float32))
    return normalise(log_power(F.pad(mono, (0, max(_SHORTEST - len(mono), 0)))))[None]


def log_power(mono: Tensor) -> Tensor:
    """Log power spectrogram: (samples,), at least 257, to (257, 1 + samples // 353)."""
    signal = F.pad(mono[None], (_N_FFT // 2, _N_FFT // 2), mode="reflect")[0]
    window = torch.hann_window(_N_FFT)
    frames = 1 + len(mono) // _HOP
    parts = []
    for start in range(0, frames, _FRAMES_AT_ONCE):
        stop = min(start + _FRAMES_AT_ONCE, frames)
        part = signal[start * _HOP : (stop - 1) * _HOP + _N_FFT]
        spectrum = torch.stft(part, _N_FFT, _HOP, window=window, center=False, return_complex=True)
        parts.append((spectrum.abs().square() + 1e-7).log())
    return torch.cat(parts, dim=1)


def normalise(spectrogram: Tensor) -> Tensor:
    """Normalise to mean 0 and standard deviation 1 over all values, in float32. A constant gives zeros."""
    exact = spectrogram.double()
    std, mean = torch.std_mean(exact)
    return exact.sub_(mean).div_(std + 1e-9).float()
