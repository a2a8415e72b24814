"""Short names of weights and towers, so that files made with one model are not used with another."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """8 hex digits that identify trained weights, independent of file format and device.

    They cover all matrices and kernels, rounded to float16. Vectors and integers are left out.
    """
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        if tensor.ndim > 1 and tensor.is_floating_point():
            digest.update(tensor.detach().cpu().half().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def clip_fingerprint(config: Any) -> str:
    """Name a CLIP vision tower by the architecture in its config. The name doesn't depend on how it was loaded."""
    return (
        f"{config.model_type}-w{config.hidden_size}-l{config.num_hidden_layers}"
        f"-p{config.patch_size}-i{config.image_size}"
    )
