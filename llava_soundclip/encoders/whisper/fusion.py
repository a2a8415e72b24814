"""Fusion of the means of Whisper's blocks into one vector (Table 8 of the paper)."""

import re
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from llava_soundclip.encoders.base import check_choice

FusionName = Literal["average_all", "final_only", "middle_only", "last_n", "weighted_sum"]


@dataclass(frozen=True)
class Fusion:
    """A fusion of the blocks. Projectors and signatures store its text form, such as "last_n:4".

    Attributes:
        name: "average_all" is the paper's choice (the mean over all blocks); "final_only"; "middle_only"
            (block L // 2, counted from 1); "last_n" (the mean of the last n); "weighted_sum" (softmax
            weights, learned together with a projector).
        n: number of blocks for "last_n", else None.

    Raises:
        ValueError: for an unknown name, and for an `n` that is missing or unwanted.
    """

    name: FusionName = "average_all"
    n: int | None = None

    def __post_init__(self) -> None:
        check_choice("fusion", self.name, FusionName)
        if self.name != "last_n":
            if self.n is not None:
                raise ValueError(f'n={self.n!r} is for fusion="last_n" only, and fusion is {self.name!r}')
        elif not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise ValueError(
                f'fusion="last_n" needs n, the number of last blocks, 1 or more; n is {self.n!r}'
            )

    @classmethod
    def parse(cls, text: str) -> "Fusion":
        """Read the text form.

        Raises:
            ValueError: for another text.
        """
        match = re.fullmatch(r"(\w+)(?::(\d+))?", text)
        if match is None:
            raise ValueError(
                f"fusion {text!r} is unknown: expected a name, or last_n with a number, as in last_n:4"
            )
        name, n = match.groups()
        return cls(cast(FusionName, name), None if n is None else int(n))

    def __str__(self) -> str:
        return self.name if self.n is None else f"{self.name}:{self.n}"

    def check_blocks(self, blocks: int, of: str) -> None:
        """Check `n` against the number of blocks.

        Args:
            blocks: number of blocks, L.
            of: owner of the blocks, for the message.

        Raises:
            ValueError: if `n` is above `blocks`.
        """
        if self.n is not None and self.n > blocks:
            raise ValueError(f"n={self.n} is above the {blocks} blocks of {of}")

    def __call__(self, layer_means: Tensor, layer_weights: Tensor | None = None) -> Tensor:
        """Fuse the blocks' means.

        Args:
            layer_means: (B, L, dim) float32, block 1 first.
            layer_weights: (L,) before the softmax, for "weighted_sum". Gradients flow to them.

        Returns:
            (B, dim) float32.
        """
        if self.name == "final_only":
            return layer_means[:, -1]
        if self.name == "middle_only":
            return layer_means[:, max(layer_means.shape[1] // 2, 1) - 1]
        if self.name == "last_n":
            return layer_means[:, -cast(int, self.n) :].mean(dim=1)
        if self.name == "weighted_sum":
            weights = cast(Tensor, layer_weights).float().softmax(dim=0)
            return torch.einsum("l,bld->bd", weights, layer_means)
        return layer_means.mean(dim=1)
