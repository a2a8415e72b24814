"""From an encoder's vector to CLIP's token space: padded as it is, projected, or a mix of both.

Shapes: B sounds, d_a the encoder's width (`audio_dim`), D the vision tower's (`width`), z_a (B, d_a)
what the encoder gives, f_a (B, D) what takes the CLS slot. Appendix F.2 of the paper has both forms; the
projected one is in `projector.py`, which needs the Hub's package and so is imported when it is asked for.
"""

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from llava_soundclip.projector import Projector

_MAX_DIM = 2**20  # far above any encoder; products of two such widths still fit 64 bits


def __getattr__(name: str) -> Any:
    if name == "Projector":
        from llava_soundclip.projector import Projector

        return Projector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class RawPad(nn.Module):
    """Pads with zeros or truncates to the tower's width: the paper's Non-Aligned form (F.2).

    Args:
        width: D, the width of the tower's tokens.

    Raises:
        ValueError: if `width` isn't a positive int.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = checked_dim("width", width)

    def forward(self, z: Tensor) -> Tensor:
        """(B, d_a) of any float dtype to (B, D) of the same one.

        Raises:
            ValueError: if `z` isn't a 2-D tensor of floats.
        """
        check_vectors(z)
        return F.pad(z[:, : self.width], (0, max(0, self.width - z.shape[1])))

    def extra_repr(self) -> str:
        return f"width={self.width}"


class Mix(nn.Module):
    """alpha x raw + (1 - alpha) x projected (B.1). At alpha 1 and 0 only the one side is computed.

    Args:
        alpha: in [0, 1]; 1 is raw, 0 is projected.
        raw: (B, d_a) to (B, D).
        projected: (B, d_a) to (B, D).

    Raises:
        ValueError: if `alpha` isn't a number in [0, 1].
    """

    def __init__(self, alpha: float, raw: nn.Module, projected: nn.Module) -> None:
        super().__init__()
        self.alpha = _checked_alpha(alpha)
        self.raw = raw
        self.projected = projected

    def forward(self, z: Tensor) -> Tensor:
        """(B, d_a) to (B, D), in the dtype that torch promotes the two sides to."""
        if self.alpha == 1:
            return self.raw(z)
        if self.alpha == 0:
            return self.projected(z)
        return self.alpha * self.raw(z) + (1 - self.alpha) * self.projected(z)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def build_alignment(
    alignment: str | float, *, audio_dim: int, width: int, projector: "Projector | None" = None
) -> nn.Module:
    """The module that takes z_a (B, d_a) to f_a (B, D).

    Args:
        alignment: "raw", "projected", or alpha in [0, 1] (B.1: 1 is raw, 0 is projected).
        audio_dim: d_a of the encoder.
        width: D of the tower.
        projector: needed unless raw.

    Raises:
        ValueError: if `alignment` is none of these, or the projector is missing or of other widths.
    """
    raw = RawPad(width)
    named = {"raw": 1.0, "projected": 0.0}
    if isinstance(alignment, str) and alignment in named:
        alpha = named[alignment]
    else:
        alpha = _checked_alpha(alignment, name="alignment")
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


def check_vectors(z: Tensor) -> None:
    """Refuse what isn't (B, d_a) of floats."""
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"Expected vectors (B, d_a) of floats, got {tuple(z.shape)} of {z.dtype}.")


def as_number(value: Any) -> float:
    """NaN, which no range holds, if it is none. A bool is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def checked_dim(name: str, value: Any) -> int:
    """A width, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_DIM:
        raise ValueError(f"{name} must be an int from 1 to {_MAX_DIM}, got {value!r}.")
    return value


def _checked_alpha(alpha: Any, *, name: str = "alpha") -> float:
    number = as_number(alpha)
    if not 0 <= number <= 1:
        strings = "'raw', 'projected' or " if name == "alignment" else ""
        raise ValueError(f"{name} must be {strings}a number in [0, 1] (1 is raw), got {alpha!r}.")
    return number
