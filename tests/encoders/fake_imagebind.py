"""ImageBind towers with drawn weights, and files of them in the formats that are published."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava_soundclip.encoders.imagebind import ImageBindEncoder
from llava_soundclip.encoders.imagebind.tower import ImageBindTower
from llava_soundclip.encoders.imagebind.weights import original_name
from tests.encoders.drawn import drawn

FULL = {"width": 768, "depth": 12, "mlp_width": 3072, "patches": 228, "dim": 1024}
SMALL = {"width": 128, "depth": 2, "mlp_width": 64, "patches": 228, "dim": 32}


def weights(**sizes: int) -> dict[str, Tensor]:
    """Under the original's names."""
    with torch.device("meta"):
        tower = ImageBindTower(**(sizes or SMALL))
    return drawn({original_name(name): tuple(value.shape) for name, value in tower.state_dict().items()})


def tower(**sizes: int) -> ImageBindTower:
    """With the drawn weights."""
    with torch.device("meta"):
        made = ImageBindTower(**(sizes or SMALL))
    state = weights(**sizes)
    made.load_state_dict({name: state[original_name(name)] for name in made.state_dict()}, assign=True)
    return made.eval().requires_grad_(False)


def encoder(**sizes: int) -> ImageBindEncoder:
    return ImageBindEncoder(tower(**sizes), "drawn").eval()


def others() -> dict[str, Tensor]:
    """Some of the tensors of the other modalities, which a reader must step over."""
    return {
        "modality_trunks.vision.blocks.0.norm_1.weight": torch.ones(1280),
        "modality_heads.text.proj.0.bias": torch.zeros(8),
    }


def write_pth(path: Path, state: dict[str, Tensor] | None = None) -> Path:
    """As `imagebind_huge.pth`: a plain dict of tensors."""
    torch.save(others() | (weights() if state is None else state), path)
    return path


def write_safetensors(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """As the mirror on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(others() | (weights() if state is None else state), folder / "model.safetensors")
    return folder
