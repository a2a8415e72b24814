"""The raw form (F.2), and the mix of both forms (B.1)."""

from torch import Tensor, nn
from torch.nn import functional as F

from llava_soundclip.alignment.checks import check_vectors, checked_alpha, checked_dim


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
        """Map (B, d_a) of any float dtype to (B, D) of the same dtype.

        Raises:
            ValueError: if `z` isn't a 2-D float tensor.
        """
        check_vectors(z)
        return F.pad(z[:, : self.width], (0, max(0, self.width - z.shape[1])))

    def extra_repr(self) -> str:
        return f"width={self.width}"


class Mix(nn.Module):
    """alpha x raw + (1 - alpha) x projected (B.1). At alpha 1 and 0 only one side is computed.

    Args:
        alpha: in [0, 1]; 1 is raw, 0 is projected.
        raw: module that maps (B, d_a) to (B, D).
        projected: module that maps (B, d_a) to (B, D).

    Raises:
        ValueError: if `alpha` isn't a number in [0, 1].
    """

    def __init__(self, alpha: float, raw: nn.Module, projected: nn.Module) -> None:
        super().__init__()
        self.alpha = checked_alpha(alpha)
        self.raw = raw
        self.projected = projected

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, d_a) to (B, D), in the dtype that torch promotes the two sides to."""
        if self.alpha == 1:
            return self.raw(z)
        if self.alpha == 0:
            return self.projected(z)
        return self.alpha * self.raw(z) + (1 - self.alpha) * self.projected(z)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
