"""CLIP's preparation of pictures without transformers, so that worker processes start quickly and stay small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_LONGEST = 200  # times the shorter side; a longer picture isn't resized as a whole
_TRIAL_SIZES = ((64, 48), (37, 91), (500, 333), (10, 10))  # (width, height)


@dataclass(frozen=True)
class ClipPictures:
    """The same as `CLIPImageProcessor`: resize by the shorter side, crop the centre, normalise. Picklable.

    Attributes:
        size: length of the shorter side in pixels.
        crop: height and width of the result in pixels.
        resample: Pillow's number of the filter.
        scale: factor for byte values.
        mean: mean per channel, after scaling.
        std: standard deviation per channel, after scaling.
    """

    size: int
    crop: tuple[int, int]
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def like(cls, processor: Any) -> "ClipPictures | None":
        """An equivalent of an image processor, tested on pictures; None if the processor differs."""
        try:
            crop = processor.crop_size["height"], processor.crop_size["width"]
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
            size, scale = processor.size["shortest_edge"], processor.rescale_factor
            light = cls(size, crop, int(processor.resample), scale, mean, std)
            return light if all(_agree(light, processor, size) for size in _TRIAL_SIZES) else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Prepare RGB pictures: (n, 3, H, W) float32."""
        return np.stack([self._prepare(picture) for picture in pictures])

    def _prepare(self, picture: Image.Image) -> np.ndarray:
        width, height = picture.size
        long = int(self.size * max(width, height) / min(width, height))
        size = (self.size, long) if width <= height else (long, self.size)
        top, left = (size[1] - self.crop[0]) // 2, (size[0] - self.crop[1]) // 2
        if long > _LONGEST * self.size and min(top, left) >= 0:  # a thin picture: only the centre is made
            (x, y), (w, h) = (width / size[0], height / size[1]), self.crop[::-1]
            box = (left * x, top * y, (left + w) * x, (top + h) * y)
            pixels = np.asarray(picture.resize((w, h), self.resample, box), dtype=np.float32)
        else:
            pixels = np.asarray(picture.resize(size, self.resample), dtype=np.float32)
            pixels = pixels[top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normal = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


@dataclass(frozen=True)
class ProcessorPictures:
    """Wraps any image processor. A worker that gets one imports transformers."""

    processor: Any

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Prepare RGB pictures: (n, 3, H, W) float32."""
        pixels = self.processor(list(pictures), return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(pixels, dtype=np.float32)


def prepare_like(processor: Any) -> ClipPictures | ProcessorPictures:
    """The function that prepares pictures in worker processes, from an image processor."""
    return ClipPictures.like(processor) or ProcessorPictures(processor)


def _agree(light: ClipPictures, processor: Any, size: tuple[int, int]) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise)]
    expected = ProcessorPictures(processor)(pictures)
    found = light(pictures)
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=0, atol=1e-5))
