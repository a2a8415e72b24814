"""Wav2CLIP and AudioCLIP with drawn weights, as the releases' files hold them, for the tests."""

import zlib
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

_ATTENTION = [  # channels in, channels out, kernel of AudioCLIP's att1 to att5
    (64, 256, (3, 1)),
    (256, 512, (1, 5)),
    (512, 1024, (3, 1)),
    (1024, 2048, (1, 5)),
    (2048, 2048, (3, 5)),
]


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def trunk(channels: int, depths: tuple[int, ...], *, bottleneck: bool) -> Shapes:
    """ResNet-18, or ResNeXt-50 32x4d, under torchvision's names and without the head."""
    shapes: Shapes = {"conv1.weight": (64, channels, 7, 7), **norm("bn1", 64)}
    last = 64
    for i, depth in enumerate(depths):
        planes = 64 * 2**i
        out = 4 * planes if bottleneck else planes
        for j in range(depth):
            block = f"layer{i + 1}.{j}"
            if bottleneck:
                width = 2 * planes
                kernels = [(width, last, 1, 1), (width, width // 32, 3, 3), (out, width, 1, 1)]
            else:
                kernels = [(planes, last, 3, 3), (planes, planes, 3, 3)]
            for k, kernel in enumerate(kernels, start=1):
                shapes |= {f"{block}.conv{k}.weight": kernel, **norm(f"{block}.bn{k}", kernel[0])}
            if last != out:
                shapes |= {f"{block}.downsample.0.weight": (out, last, 1, 1)}
                shapes |= norm(f"{block}.downsample.1", out)
            last = out
    return shapes


def wav2clip_shapes() -> Shapes:
    shapes = {f"audio_encoder.{name}": s for name, s in trunk(1, (2, 2, 2, 2), bottleneck=False).items()}
    for i in (0, 3):
        shapes[f"audio_transform.sequential.{i}.weight"] = (512, 512)
        shapes[f"audio_transform.sequential.{i}.bias"] = (512,)
    return shapes


def audioclip_shapes() -> Shapes:
    shapes = trunk(3, (3, 4, 6, 3), bottleneck=True)
    for i, (channels, out, kernel) in enumerate(_ATTENTION, start=1):
        shapes[f"att{i}.conv_depth.weight"] = (channels, 1, *kernel)
        shapes[f"att{i}.conv_depth.bias"] = (channels,)
        shapes[f"att{i}.conv_point.weight"] = (out, channels, 1, 1)
        shapes[f"att{i}.conv_point.bias"] = (out,)
        shapes |= norm(f"att{i}.bn", out)
    shapes |= {"fc.weight": (1024, 2048), "fc.bias": (1024,), "fbsp.bias": (0,)}
    shapes |= {f"fbsp.{part}": (1025,) for part in ("m", "fb", "fc")}
    return {f"audio.{name}": shape for name, shape in shapes.items()}


@lru_cache(maxsize=4)
def weights(encoder: str, seed: int = 0) -> dict[str, Tensor]:
    """The weights of "wav2clip" or "audioclip", drawn from (seed, name) by the goldens' rule.

    Matrices and kernels are normal over the square root of their fan-in, "weight" vectors close to 1,
    variances and the filters' parameters close to where they start from and never below, others close to 0.
    """
    shapes = wav2clip_shapes() if encoder == "wav2clip" else audioclip_shapes()
    return {name: _draw(name, shape, seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise / noise[0].numel() ** 0.5
    if name.endswith(("fbsp.fb", "running_var")):
        return 1 + 0.1 * noise.abs()
    if name.endswith("fbsp.m"):
        return 0.1 * noise.abs()
    if name.endswith("fbsp.fc"):
        return torch.arange(len(noise)) + 0.1 * noise
    return 0.1 * noise + float(name.endswith("weight"))


def file_content(encoder: str, seed: int = 0) -> dict[str, Tensor]:
    """What a release's file holds: computed buffers beside the weights; in AudioCLIP's also its other parts."""
    content = dict(weights(encoder, seed))
    counters = {
        name.replace("running_var", "num_batches_tracked") for name in content if "running_var" in name
    }
    content |= {name: torch.tensor(7) for name in counters}
    if encoder == "wav2clip":
        content["audio_encoder.spectrogram.window"] = torch.hann_window(512)
    else:
        content["audio.window"] = torch.ones(1654)
        content["visual.conv1.weight"] = torch.zeros(64, 3, 3, 3)
        content["visual.attnpool.positional_embedding"] = torch.zeros(50, 2048)
        content["logit_scale_ai"] = torch.tensor(4.6)
    return content


def write_pt(path: Path, encoder: str, seed: int = 0) -> Path:
    """A `.pt` like a release's."""
    torch.save(file_content(encoder, seed), path)
    return path


def write_safetensors(path: Path, encoder: str, seed: int = 0) -> Path:
    """The weights alone, in safetensors."""
    save_file(weights(encoder, seed), path)
    return path


def write_wav2clip(folder: Path) -> Path:
    """A checkpoint for tests of every encoder."""
    return write_pt(folder / "Wav2CLIP.pt", "wav2clip")


def write_audioclip(folder: Path) -> Path:
    """A checkpoint for tests of every encoder."""
    return write_pt(folder / "AudioCLIP-Full-Training.pt", "audioclip")
