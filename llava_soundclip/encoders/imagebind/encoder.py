"""ImageBind's audio encoder: a small ViT on three windows of a sound.

Written from a description of the original's behaviour, without reading its code, which is CC-BY-NC-SA.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llava_soundclip.encoders.base import AtOnce, AudioEncoder, EncoderCard, LoadOptions
from llava_soundclip.encoders.checkpoints import find_checkpoint
from llava_soundclip.encoders.imagebind.fbank import SAMPLING_RATE, WINDOWS, frontend, resample
from llava_soundclip.encoders.imagebind.tower import ImageBindTower
from llava_soundclip.encoders.imagebind.weights import read_state, tower_for
from llava_soundclip.fingerprints import fingerprint

KNOWN = {
    "nielsr/imagebind-huge": "nielsr/imagebind-huge",
    "imagebind_huge.pth": "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
}
LICENCE = "CC-BY-NC-SA-4.0"

_WINDOWS_AT_ONCE = AtOnce(cpu=6, accelerator=96)


@dataclass(frozen=True, kw_only=True)
class ImageBindOptions(LoadOptions):
    """Options of `ImageBindEncoder.load`.

    Attributes:
        checkpoint: Hub id of a mirror in safetensors with the original's names, "imagebind_huge.pth" from Meta's
            server, or a file of either.
        dtype: dtype of the weights and hidden states; the filter banks are always float32.
    """

    checkpoint: str | PathLike[str] = "nielsr/imagebind-huge"


class ImageBindEncoder(AudioEncoder):
    """ImageBind: the mean over the front, the middle and the back of a sound, 2 s each.

    The rest of a sound above 6 s is ignored, as in the original. The mean over all channels is subtracted, then
    the first channel is used. Each window's vector has the length min(exp(log_logit_scale), 100), which is 20 in
    the released weights; the mean of the vectors isn't normalised. The cosine to the float32 vectors is 0.99999
    in float16 and 0.9999 in bfloat16 (random weights).

    The weights are CC-BY-NC-SA 4.0: not for commercial use. In float32 on a CPU they stay mapped to their file.

    Attributes:
        tower: network.
    """

    name: ClassVar[str] = "imagebind"
    sampling_rate = SAMPLING_RATE
    resamples: ClassVar[bool] = True
    card: ClassVar[EncoderCard | None] = EncoderCard(
        dim="1024",
        window="three windows of 2 s: front, middle, back",
        code="independent implementation (the original's is CC-BY-NC-SA-4.0)",
        weights=LICENCE,
        source=f"Hub: {ImageBindOptions.checkpoint} (4.8 GB)",
    )

    def __init__(self, tower: ImageBindTower, checkpoint: str) -> None:
        super().__init__()
        self.tower = tower
        self.dim = tower.head.out_features
        self.checkpoint = checkpoint

    @classmethod
    def load(cls, **options: Any) -> "ImageBindEncoder":
        """Build the encoder from the audio part of a checkpoint.

        Args:
            **options: options of `ImageBindOptions`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for an unknown value of an option (before anything is read), and for a checkpoint that is
                truncated, foreign or contains code.
            OSError: if the checkpoint doesn't exist, or a server can't be reached.
        """
        chosen = ImageBindOptions.given(**options)
        path = find_checkpoint(chosen.checkpoint, KNOWN, "ImageBind", chosen.revision)
        state = read_state(path)
        _say_licence()
        with torch.device("meta"):  # without memory or random numbers: the weights are replaced at once
            tower = tower_for(state, path)
        tower.load_state_dict({name: t.to(chosen.torch_dtype) for name, t in state.items()}, assign=True)
        return cls(tower, f"huge-{fingerprint(state)}").to(chosen.device)

    def _resample(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        from llava_soundclip.media.waveforms import check_rate

        check_rate(sampling_rate)
        return resample(torch.from_numpy(waveform), int(sampling_rate), SAMPLING_RATE).numpy()

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        inputs = torch.cat([frontend(waveform) for waveform in waveforms])
        device = self._device
        vectors = [self.tower(part.to(device)) for part in inputs.split(_WINDOWS_AT_ONCE.on(device))]
        return torch.cat(vectors).unflatten(0, (-1, WINDOWS)).mean(dim=1)


@cache
def _say_licence() -> None:
    logging.getLogger(__name__).warning(
        "ImageBind's weights are licensed %s: not for commercial use, and adaptations must be shared alike",
        LICENCE,
    )
