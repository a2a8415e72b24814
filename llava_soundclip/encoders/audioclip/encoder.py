"""AudioCLIP's audio encoder (ESResNeXt-fbsp): a ResNeXt-50 with attention on a spectrogram of learned filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from llava_soundclip.encoders.audioclip.fbsp import SAMPLING_RATE, frame_count
from llava_soundclip.encoders.audioclip.tower import DIM, FEATURES, AudioTower
from llava_soundclip.encoders.base import (
    AtOnce,
    AudioEncoder,
    EncoderCard,
    LoadOptions,
    batches,
)
from llava_soundclip.encoders.checkpoints import (
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.encoders.resnet import assign_weights
from llava_soundclip.fingerprints import fingerprint

Amplitude = Literal["int16", "unit"]

KNOWN = {
    name: f"https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/{name}"
    for name in ("AudioCLIP-Full-Training.pt", "AudioCLIP-Partial-Training.pt")
}

_WINDOW = 60 * SAMPLING_RATE  # samples
_FRAMES_AT_ONCE = AtOnce(cpu=512, accelerator=2 * frame_count(_WINDOW))


@dataclass(frozen=True, kw_only=True)
class AudioCLIPOptions(LoadOptions):
    """Options of `AudioCLIPEncoder.load`.

    Attributes:
        checkpoint: "AudioCLIP-Full-Training.pt" or "AudioCLIP-Partial-Training.pt" (releases on GitHub, stored
            in torch's cache), one of their files, a safetensors file with the same names, or a Hub id.
        dtype: dtype of the network; the transform is always float32.
        amplitude: "int16" multiplies sounds by 32768 before the network, like the original's training and its
            readers; "unit" doesn't, like its demo notebook.
    """

    checkpoint: str | PathLike[str] = "AudioCLIP-Full-Training.pt"
    amplitude: Amplitude = "int16"


class AudioCLIPEncoder(AudioEncoder):
    """AudioCLIP: one vector per sound, not normalised, as `encode_audio` returns it.

    A sound of up to 60 s goes through the network whole, as in the original. The attention takes maxima over
    the whole sound, so it can't run in pieces. A longer sound is cut into windows of 60 s, the last one
    shorter, and the vectors are averaged with their lengths as weights.

    Each channel goes through the network separately, and the pooled features are summed, as `encode_audio` does
    for (1, channels, samples). The original's file readers average the channels first: to compare
    with them, pass such a mean. They also resample with kaiser_best of an old librosa. This class resamples with
    soxr, like later versions of librosa.

    The transform is always float32. With the network in float16 the cosine to the float32 vectors is above
    0.999, in bfloat16 above 0.99 (random weights; digital silence is the worst case).

    The checkpoints of full and partial training have the same tensors and shapes. Only the fingerprint in
    `checkpoint` distinguishes them.

    Attributes:
        audio: network, under the checkpoint's names.
        amplitude: see `AudioCLIPOptions`.
    """

    name: ClassVar[str] = "audioclip"
    sampling_rate = SAMPLING_RATE
    dim = DIM
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="1024",
        window="60 s; longer sounds in windows, averaged",
        code="MIT",
        weights="not stated (release of an MIT repository)",
        source="GitHub: AndreyGuzhov/AudioCLIP",
    )

    def __init__(
        self,
        state: Mapping[str, Tensor],
        options: AudioCLIPOptions | None = None,
        *,
        source: object = "the state",
    ) -> None:
        """Build the network from weights under the original names.

        Args:
            state: tensors by name; copied.
            options: options; the defaults if None.
            source: file of the tensors, for messages.

        Raises:
            ValueError: if the tensors aren't those of AudioCLIP's audio encoder.
        """
        super().__init__()
        options = options or AudioCLIPOptions()
        with torch.device("meta"):  # without memory or random numbers: the weights are replaced at once
            self.audio = AudioTower()
        assign_weights(
            self,
            state,
            source=source,
            what="AudioCLIP audio encoder",
            dtype=options.torch_dtype,
            float32=("audio.fbsp.",),
        )
        self.amplitude = options.amplitude
        self.checkpoint = f"audioclip-{fingerprint(state)}"

    @classmethod
    def load(cls, **options: Any) -> "AudioCLIPEncoder":
        """Build the encoder from the audio part of a checkpoint.

        Args:
            **options: options of `AudioCLIPOptions`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an unknown value of an option (before anything is read), and for a checkpoint that is
                truncated, foreign or contains code.
            OSError: if the checkpoint doesn't exist, or a server can't be reached.
        """
        chosen = AudioCLIPOptions.given(**options)
        path = find_checkpoint(chosen.checkpoint, KNOWN, "AudioCLIP", chosen.revision)
        return cls(read_tensors(path, ("audio.",)), chosen, source=path).to(chosen.device)

    def signature(self) -> Mapping[str, str]:
        return {**super().signature(), "amplitude": self.amplitude}

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        device = self._device
        windows = [
            (i, waveform[:, start : start + _WINDOW])
            for i, waveform in enumerate(waveforms)
            for start in range(0, waveform.shape[1], _WINDOW)
        ]
        pooled = torch.zeros(len(windows), FEATURES, device=device)
        channels = [(j, channel) for j, (_, window) in enumerate(windows) for channel in window]
        frames = [frame_count(len(channel)) for _, channel in channels]
        for batch in batches(frames, _FRAMES_AT_ONCE.on(device)):
            # One sound at a time: in silence the transform is rounding noise, which a batch would change.
            spectrograms = torch.stack([self._frontend(channels[row][1]) for row in batch])
            for row, features in zip(batch, self.audio(spectrograms), strict=True):
                pooled[channels[row][0]] += features
        vectors = self.audio.project(pooled)
        totals = torch.zeros(len(waveforms), DIM, device=device)
        for (i, window), vector in zip(windows, vectors, strict=True):
            totals[i] += vector * (window.shape[1] / waveforms[i].shape[1])
        return totals

    def _frontend(self, channel: np.ndarray) -> Tensor:
        """(samples,) in [-1, 1] to (3, 341, frames) float32."""
        samples = torch.from_numpy(channel).to(self._device)
        return self.audio.fbsp.frontend(samples * 32768.0 if self.amplitude == "int16" else samples)
