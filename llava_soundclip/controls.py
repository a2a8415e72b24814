"""Controls for figures with a sound: CLS slots that say nothing about the clip, and patches kept at random.

The paper has no controls. Without them a good caption may come from the picture alone, and the language model may
ignore the sound's token.
"""

import zlib
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_soundclip.substitution import AudioTokenSubstituter, Selection, best

Control = Literal["noise", "zero", "random"]  # values of `SoundCLIP.control`
ANOTHER: Literal["another"] = "another"  # another clip's sound, where there are many clips
CaptionControl = Literal["another", "noise", "zero", "random"]


def check_control(control: object) -> Control | None:
    """Return `control` if it is a control or None.

    Raises:
        ValueError: for anything else.
    """
    if control is not None and control not in get_args(Control):
        raise ValueError(
            f"control must be one of {', '.join(map(repr, get_args(Control)))} or None, not {control!r}"
        )
    return control  # type: ignore[return-value]


def fill(f_a: Tensor, control: Control | None) -> Tensor:
    """The vectors for the CLS slot, under a control.

    Args:
        f_a: (B, D) sounds in the tower's space, of any float dtype.
        control: "noise" gives a random direction with the norm of the sound, "zero" a zero vector. "random" and None
            leave the sound. The same sound always gets the same noise.

    Returns:
        (B, D) in the dtype and on the device of `f_a`.
    """
    if control == "zero":
        return torch.zeros_like(f_a)
    if control != "noise":
        return f_a
    directions = [torch.randn(f_a.shape[1], generator=_generator(row)) for row in f_a]
    noise = F.normalize(torch.stack(directions), dim=1)
    return (noise.to(f_a.device) * f_a.float().norm(dim=1, keepdim=True)).to(f_a.dtype)


class RandomSubstituter(AudioTokenSubstituter):
    """Keeps k random patches, always the same ones for the same sound.

    It is the baseline for every figure about k, since random patches are often as good (UniPruneBench). The
    similarities stay those of the sound.
    """

    def select(self, tokens: Tensor, audio: Tensor, candidates: Tensor | None = None) -> Selection:
        selection = super().select(tokens, audio, candidates)
        patches = selection.similarity.shape[1]
        drawn = torch.stack([torch.rand(patches, generator=_generator(row)) for row in audio])
        drawn = drawn.to(selection.similarity.device)
        return Selection(selection.similarity, best(drawn, self.k, candidates))


def _generator(row: Tensor) -> torch.Generator:
    """A generator seeded by the sound alone. The sound is rounded, since it differs slightly from batch to batch."""
    numbers = row.detach().float().cpu()
    rounded = (numbers / numbers.abs().amax().clamp_min(1e-12) * 100).round().to(torch.int8)
    return torch.Generator().manual_seed(zlib.crc32(rounded.numpy().tobytes()))
