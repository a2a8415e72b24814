"""Small clips, a header and a tiny CLIP tower in files, as a user has them."""

import warnings
from pathlib import Path

import torch

from llava_soundclip.features import FeatureHeader
from tests.conftest import tiny_vision_config
from tests.media.making import chirp, picture_frames, to_format, write


def header(**changes):
    values = {
        "encoder": {"encoder": "tiny", "checkpoint": "tiny-test"},
        "audio_dim": 4,
        "layers": None,
        "tower": "clip-tiny",
        "tower_weights": "0123",
        "tower_layer": -2,
        "width": 6,
        "dtype": "float32",
    }
    return FeatureHeader(**(values | changes))


def save_tiny_tower(folder: Path, *, seed: int = 0) -> Path:
    """A folder as `CLIPVisionModel.save_pretrained` and its image processor write it."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.CLIPVisionModel(tiny_vision_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
            elif name.endswith("class_embedding"):
                parameter.normal_(0, 1)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def make_films(folder: Path, count: int) -> list[Path]:
    """Films of different lengths, sounds and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    films = []
    for i in range(count):
        seconds = 0.3 + 0.1 * (i * 7 % 5)
        sound = to_format(0.9 / (1 + i) * chirp(seconds, 16_000, 1 + i % 2), "s16")
        pictures = picture_frames(4 + i % 3, first=0)
        path = folder / f"film{i:03}.mkv"
        films.append(write(path, sound=sound, pictures=pictures))
    return films
