"""AudioCLIP's audio side (ESResNeXt-fbsp): a ResNeXt-50 with attention, on a spectrogram of learned filters."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip.encoders.audioclip.fbsp import BANDS, FBSP, SAMPLING_RATE, frame_count
from llava_soundclip.encoders.base import (
    AtOnce,
    AudioEncoder,
    DType,
    EncoderCard,
    batches,
    check_choice,
    check_dtype,
)
from llava_soundclip.encoders.checkpoints import (
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.encoders.resnet import Bottleneck, Norm, ResNet, assign_weights
from llava_soundclip.fingerprints import fingerprint

Amplitude = Literal["int16", "unit"]

KNOWN = {
    name: f"https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/{name}"
    for name in ("AudioCLIP-Full-Training.pt", "AudioCLIP-Partial-Training.pt")
}

_FEATURES = 2048
_DIM = 1024
_WINDOW = 60 * SAMPLING_RATE  # samples
_FRAMES_AT_ONCE = AtOnce(cpu=512, accelerator=2 * frame_count(_WINDOW))


class AudioCLIPEncoder(AudioEncoder):
    """AudioCLIP: one vector of a sound, as `encode_audio` gives it: not normalised.

    A sound of up to 60 s goes through the network whole, as in the original. Its attention takes maxima over
    all of the sound, so it can't be run in pieces: a longer sound is cut into windows of 60 s, the last one
    shorter, and the vectors are averaged by their samples.

    Channels: each goes through the network alone and the pooled features are summed, as `encode_audio` does it
    for (1, channels, samples). The original's readers of files average the channels before that: give such a
    mean if you compare with them. They also resample with librosa's kaiser_best of its time; here it is soxr,
    as in later versions of librosa.

    The transform is float32 in any case. With the network in float16 the vectors have a cosine above 0.999 to
    those in float32, in bfloat16 above 0.99 (drawn weights; digital silence is the worst).

    The checkpoints of full and of partial training have the same parts and shapes: only the fingerprint in
    `checkpoint` tells them apart.

    Attributes:
        audio: the network, under the checkpoint's names.
        amplitude: "int16" multiplies sounds by 32768 before the network, as the original's training and its
            readers do; "unit" doesn't, as its demo notebook.
    """

    name: ClassVar[str] = "audioclip"
    sampling_rate = SAMPLING_RATE
    dim = _DIM
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="1024",
        window="60 s, of longer sounds windows, averaged",
        code="MIT",
        weights="not stated (release of an MIT repository)",
        source="GitHub: AndreyGuzhov/AudioCLIP",
    )

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        amplitude: Amplitude = "int16",
        source: object = "the state",
    ) -> None:
        """Take weights under the original names.

        Args:
            state: tensors by name; copied.
            dtype: of the network; the transform is float32.
            amplitude: "int16" or "unit"; see the class.
            source: the file, for messages.

        Raises:
            ValueError: if they aren't those of AudioCLIP's audio side.
        """
        super().__init__()
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            self.audio = AudioTower()
        assign_weights(
            self,
            state,
            source=source,
            what="AudioCLIP audio encoder",
            dtype=dtype,
            float32=("audio.fbsp.",),
        )
        self.amplitude = amplitude
        self.checkpoint = f"audioclip-{fingerprint(state)}"

    @classmethod
    def load(
        cls,
        *,
        checkpoint: str | PathLike[str] | None = "AudioCLIP-Full-Training.pt",
        device: str | torch.device | None = None,
        dtype: DType | torch.dtype | None = None,
        amplitude: Amplitude = "int16",
        revision: str | None = None,
    ) -> "AudioCLIPEncoder":
        """Build the encoder from a checkpoint, of which only the audio part is read.

        Args:
            checkpoint: "AudioCLIP-Full-Training.pt" or "AudioCLIP-Partial-Training.pt" (the releases on GitHub,
                kept in torch's cache), a file of one, a safetensors file with the same names, or a Hub id.
            device: where it runs; the CPU by default.
            dtype: of the network, float32 by default.
            amplitude: "int16" or "unit"; see the class.
            revision: branch, tag or commit on the Hub.

        Raises:
            ValueError: for an option that isn't one of these (before anything is read), or a checkpoint that
                is cut, foreign or holds code.
            OSError: if the checkpoint isn't there, or a server can't be reached.
        """
        checkpoint = "AudioCLIP-Full-Training.pt" if checkpoint is None else checkpoint
        check_choice("amplitude", amplitude, Amplitude)
        checked_dtype = check_dtype(dtype)
        path = find_checkpoint(checkpoint, KNOWN, "AudioCLIP", revision)
        state = read_tensors(path, ("audio.",))
        return cls(state, dtype=checked_dtype, amplitude=amplitude, source=path).to(device)

    def signature(self) -> Mapping[str, str]:
        return {**super().signature(), "amplitude": self.amplitude}

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        device = self.audio.conv1.weight.device
        windows = [
            (i, waveform[:, start : start + _WINDOW])
            for i, waveform in enumerate(waveforms)
            for start in range(0, waveform.shape[1], _WINDOW)
        ]
        pooled = torch.zeros(len(windows), _FEATURES, device=device)
        channels = [(j, channel) for j, (_, window) in enumerate(windows) for channel in window]
        frames = [frame_count(len(channel)) for _, channel in channels]
        for batch in batches(frames, _FRAMES_AT_ONCE.on(device)):
            # The transform runs sound by sound: in silence it is rounding noise, which a batch would change.
            spectrograms = torch.stack([self._frontend(channels[row][1]) for row in batch])
            for row, features in zip(batch, self.audio(spectrograms), strict=True):
                pooled[channels[row][0]] += features
        vectors = self.audio.project(pooled)
        totals = torch.zeros(len(waveforms), _DIM, device=device)
        for (i, window), vector in zip(windows, vectors, strict=True):
            totals[i] += vector * (window.shape[1] / waveforms[i].shape[1])
        return totals

    def _frontend(self, channel: np.ndarray) -> Tensor:
        """(3, 341, frames) float32 of (samples,) in [-1, 1]."""
        samples = torch.from_numpy(channel).to(self.audio.conv1.weight.device)
        return self.audio.fbsp.frontend(samples * 32768.0 if self.amplitude == "int16" else samples)


class AudioTower(ResNet):
    """The network and the transform in front of it."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3), BANDS)
        self.att1 = Attention(64, 256, (3, 1))
        self.att2 = Attention(256, 512, (1, 5))
        self.att3 = Attention(512, 1024, (3, 1))
        self.att4 = Attention(1024, _FEATURES, (1, 5))
        self.att5 = Attention(_FEATURES, _FEATURES, (3, 5))
        self.fc = nn.Linear(_FEATURES, _DIM)
        self.fbsp = FBSP()

    def forward(self, spectrograms: Tensor) -> Tensor:
        """(B, 2048) float32 pooled features of (B, 3, 341, frames)."""
        x = self.stem(spectrograms)
        for layer, attention in (
            (self.layer1, self.att1),
            (self.layer2, self.att2),
            (self.layer3, self.att3),
            (self.layer4, self.att4),
        ):
            y = layer(x)
            x = y * attention(x, y.shape[-2:])
        mean = F.adaptive_avg_pool2d(x, 1)
        return (mean * self.att5(x, mean.shape[-2:])).flatten(1).float()

    def project(self, pooled: Tensor) -> Tensor:
        """(B, 1024) float32 of (B, 2048)."""
        return self.fc(pooled.to(self.fc.weight.dtype)).float()


class Attention(nn.Module):
    """Weights in (0, 1) for a layer's output, seen from its input."""

    def __init__(self, channels: int, out: int, size: tuple[int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.conv_depth = nn.Conv2d(channels, channels, size, padding=padding, groups=channels)
        self.conv_point = nn.Conv2d(channels, out, 1)
        self.bn = Norm(out)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, out, *size) of (B, channels, H, W)."""
        x = F.adaptive_max_pool2d(x, list(size))
        return self.bn(self.conv_point(self.conv_depth(x))).sigmoid()
