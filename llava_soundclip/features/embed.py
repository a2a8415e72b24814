"""From decoded clips to rows of features: the encoder's vectors and the tower's tokens, batch by batch."""

import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.features.decode import Decoded, Decoder
from llava_soundclip.features.pictures import prepare_like
from llava_soundclip.features.store import FeatureHeader, StoredDType
from llava_soundclip.features.towers import VisionTower


class Embedder:
    """Makes rows of features from batches of decoded clips.

    Args:
        encoder: the audio encoder.
        tower: the vision tower.
        patches: whether to return the patch tokens as well.
        batch_size: pictures per batch of the tower.
        seconds: times by stage, to which those of "encoder" and "tower" are added.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        tower: VisionTower,
        patches: bool,
        batch_size: int,
        seconds: MutableMapping[str, float],
    ) -> None:
        self.encoder = encoder
        self.tower = tower
        self.patches = patches
        self.batch_size = batch_size
        self.seconds = seconds

    def __call__(self, batch: Sequence[Decoded]) -> list[tuple[Tensor, Tensor] | str]:
        """The rows of a batch. If the batch fails, its clips are tried one by one.

        Returns:
            For each clip its sound, (d_a,) or (L, d_a), and its tokens, (P+1, D) with CLS first, or (1, D) without
            patches. Both are float32 on the CPU. For a clip that fails, the reason.
        """
        try:
            with clock(self.seconds, "encoder"):
                rates = [clip.sampling_rate for clip in batch]
                audio = embed_sounds(self.encoder, [clip.waveform for clip in batch], rates).cpu()
            with clock(self.seconds, "tower"):
                tokens = self._see([torch.from_numpy(clip.pixels) for clip in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other clips come next
            if len(batch) == 1:
                return [str(error) or type(error).__name__]
            return [row for clip in batch for row in self([clip])]
        return list(zip(audio, tokens, strict=True))

    def _see(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """The tokens of each clip, as the mean over its pictures."""
        sizes = [len(pixels) for pixels in pictures]
        pixels = torch.cat(list(pictures))
        kept = None if self.patches else 1
        tokens = [self.tower.tokens(part)[:, :kept].cpu() for part in pixels.split(self.batch_size)]
        return [part.mean(dim=0) for part in torch.cat(tokens).split(sizes)]


def header_of(
    encoder: AudioEncoder, tower: VisionTower, *, frames: int, patches: bool, dtype: StoredDType
) -> FeatureHeader:
    """The header of features made with an encoder and a tower."""
    signature = dict(encoder.signature())
    fusing = _fusing(encoder)
    if fusing is not None:
        signature.pop("fusion", None)
    return FeatureHeader(
        encoder=signature,
        audio_dim=encoder.dim,
        layers=None if fusing is None else fusing.n_layer,
        tower=tower.name,
        tower_weights=tower.weights,
        tower_layer=tower.layer,
        width=tower.width,
        frames=frames,
        dtype=dtype,
        patches=patches,
    )


def decoder_of(encoder: AudioEncoder, tower: VisionTower, *, frames: int) -> Decoder:
    """The decoder of clips for an encoder and a tower."""
    return Decoder(encoder.decoding_rate, frames, prepare_like(tower.processor))


def embed_sounds(encoder: AudioEncoder, sounds: Sequence[Any], rates: Sequence[int]) -> Tensor:
    """The vectors to store: (B, L, d_a) from an encoder that fuses blocks, else (B, d_a); float32."""
    fusing = _fusing(encoder)
    return encoder.embed(sounds, rates) if fusing is None else fusing.layer_means(sounds, rates)


def _fusing(encoder: Any) -> Any:
    """The encoder if it fuses the means of several blocks, else None."""
    return encoder if hasattr(encoder, "layer_means") and hasattr(encoder, "fuse") else None


@contextmanager
def clock(seconds: MutableMapping[str, float], stage: str) -> Iterator[None]:
    """Add the duration of a block to the seconds of a stage."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
