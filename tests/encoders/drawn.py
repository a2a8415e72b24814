"""Weights drawn from (seed, name), by the rule of the golden outputs: whoever uses a name has the same values."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tensors for names and shapes.

    Matrices and kernels are normal over the square root of their fan-in; "weight" vectors are close to 1, variances
    close to 1 and above it; other vectors and scalars are close to 0.
    """
    tensors = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = noise / noise[0].numel() ** 0.5
        elif name.endswith("running_var"):
            tensors[name] = 1 + 0.1 * noise.abs()
        elif name.endswith("weight"):
            tensors[name] = 1 + 0.1 * noise
        else:
            tensors[name] = 0.1 * noise
    return tensors
