"""Weights of ImageBind's audio tower: their names in the original, and a tower with their sizes."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llava_soundclip.encoders.checkpoints import check_tensors, read_tensors
from llava_soundclip.encoders.imagebind.tower import HEAD_WIDTH, ImageBindTower

_ORIGINAL = {  # our name to the original's; the names in blocks are below
    "cls_token": "modality_preprocessors.audio.cls_token",
    "patches.weight": "modality_preprocessors.audio.rgbt_stem.proj.weight",
    "patches_norm.": "modality_preprocessors.audio.rgbt_stem.norm_layer.",
    "positions": "modality_preprocessors.audio.pos_embedding_helper.pos_embed",
    "blocks.": "modality_trunks.audio.blocks.",
    "head_norm.": "modality_heads.audio.0.",
    "head.": "modality_heads.audio.2.",
    "log_logit_scale": "modality_postprocessors.audio.1.log_logit_scale",
}
_PREFIXES = [f"modality_{part}.audio." for part in ("preprocessors", "trunks", "heads", "postprocessors")]


def original_name(name: str) -> str:
    """The original's name of a tensor of `ImageBindTower`."""
    for ours, theirs in _ORIGINAL.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tower's tensors under our names, mapped to the file if possible.

    Tensors that the tower lacks keep their names, so that the tower refuses them.
    """
    ours = {theirs: name for name, theirs in _ORIGINAL.items()}
    state = {}
    for name, tensor in read_tensors(path, _PREFIXES).items():
        prefix = next((theirs for theirs in ours if name.startswith(theirs)), None)
        state[name if prefix is None else ours[prefix] + name.removeprefix(prefix)] = tensor
    return state


def tower_for(state: Mapping[str, Tensor], path: Path) -> ImageBindTower:
    """Build a tower with the sizes of the weights, on the context's device."""
    positions, head, fc1 = (
        state.get(name) for name in ("positions", "head.weight", "blocks.0.mlp.fc1.weight")
    )
    if positions is None or head is None or fc1 is None or positions.ndim != 3 or 2 != head.ndim != fc1.ndim:
        raise ValueError(
            f"{path} holds no ImageBind audio tower: expected {original_name('positions')} and "
            f"{len(_PREFIXES)} parts named {', '.join(_PREFIXES)}"
        )
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    width = positions.shape[2]
    if width % HEAD_WIDTH:
        raise ValueError(f"{path}: a width of {width} has no heads of {HEAD_WIDTH}")
    tower = ImageBindTower(width, depth, fc1.shape[0], positions.shape[1] - 1, head.shape[0])
    expected = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    check_tensors(path, state, expected, "ImageBind audio tower")
    return tower
