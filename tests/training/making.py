"""Features whose answer is known: CLS tokens that a linear map makes of sounds."""

from pathlib import Path

import torch

from llava_soundclip.features.store import FeatureHeader, FeatureWriter

AUDIO, WIDTH, LAYERS = 12, 16, 3


def write_features(
    folder: Path,
    clips: int = 240,
    *,
    layers: int | None = None,
    dtype: str = "float32",
    noise: float = 0.1,
    per_film: int = 3,
) -> Path:
    """Three clips per film by default. With `layers` only the second block of a sound tells what is seen."""
    generator = torch.Generator().manual_seed(0)
    signature = {"encoder": "whisperclip", "checkpoint": "tiny-1234", "pooling": "valid", "window": "clip"}
    if layers is None:
        signature["fusion"] = "average_all"
    header = FeatureHeader(
        encoder=signature,
        audio_dim=AUDIO,
        layers=layers,
        tower="clip-test",
        tower_weights="abcd",
        tower_layer=-2,
        width=WIDTH,
        dtype=dtype,
    )
    turn = torch.randn(AUDIO, WIDTH, generator=generator)
    with FeatureWriter(folder, header, shard_size=64) as writer:
        for clip in range(clips):
            heard = torch.randn(AUDIO, generator=generator)
            seen = heard @ turn + noise * torch.randn(WIDTH, generator=generator) + 2
            if layers is not None:
                blocks = 3 * torch.randn(layers, AUDIO, generator=generator)
                blocks[1] = heard
                heard = blocks
            writer.add(f"{clip:05}", f"film{clip // per_film}.mp4", heard, seen)
    return folder
