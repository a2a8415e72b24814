"""The module for the alignment that a user names: "raw", "projected" or alpha."""

from typing import TYPE_CHECKING

from torch import nn

from llava_soundclip.alignment.checks import checked_alpha
from llava_soundclip.alignment.raw import Mix, RawPad

if TYPE_CHECKING:
    from llava_soundclip.alignment.projector import Projector


def build_alignment(
    alignment: str | float, *, audio_dim: int, width: int, projector: "Projector | None" = None
) -> nn.Module:
    """Build the module that maps z_a (B, d_a) to f_a (B, D).

    Args:
        alignment: "raw", "projected", or alpha in [0, 1] (B.1: 1 is raw, 0 is projected).
        audio_dim: d_a, the encoder's width.
        width: D, the tower's width.
        projector: needed unless raw.

    Raises:
        ValueError: for another `alignment`, or if the projector is missing or has other widths.
    """
    raw = RawPad(width)
    alpha = check_alignment(alignment)
    if alpha == 1:
        return raw
    if projector is None:
        raise ValueError(
            f"alignment={alignment!r} needs a trained projector: pass projector= (a Projector, a folder, "
            "a .safetensors file or a Hub id), or alignment='raw'."
        )
    if (projector.audio_dim, projector.width) != (audio_dim, width):
        raise ValueError(
            f"The projector takes width {projector.audio_dim} to {projector.width}, the encoder gives "
            f"{audio_dim} and the tower has {width}: take a projector that was trained on these."
        )
    return projector if alpha == 0 else Mix(alpha, raw, projector)


def check_alignment(alignment: str | float) -> float:
    """The alpha of an alignment: 1 for "raw", 0 for "projected", else the number itself.

    Raises:
        ValueError: for anything but "raw", "projected" or a number in [0, 1].
    """
    named = {"raw": 1.0, "projected": 0.0}
    if isinstance(alignment, str) and alignment in named:
        return named[alignment]
    return checked_alpha(alignment, name="alignment")
