"""Algorithm 1 on tensors: a sound in the CLS slot, the patches most similar to it, zeros for the rest.

This module knows no model, file or encoder, and imports torch only.

Shapes: B images, N patches, D tower width, k kept patches. The paper's V is `tokens`, its f_a `audio`.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["keep", "match"]


@dataclass(frozen=True)
class Selection:
    """The patches that a sound chose (Algorithm 1, lines 8 and 9).

    Attributes:
        similarity: (B, N) float32 cosines of the sound with each patch, in [-1, 1]; 0 for a zero vector.
        kept: (B, k) int64 indices of the chosen patches, ascending, which is their spatial order.
    """

    similarity: Tensor
    kept: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, N) bool, true where a patch keeps its value."""
        return torch.zeros_like(self.similarity, dtype=torch.bool).scatter(1, self.kept, True)


def best(scores: Tensor, k: int, candidates: Tensor | None = None) -> Tensor:
    """The patches with the k largest scores; ties go to the lower index.

    Args:
        scores: (B, N) of any float dtype.
        k: number of patches to choose, 0 to N.
        candidates: (B, N) bool, the patches to choose from; by default all. Others are chosen only if these
            are too few.

    Returns:
        (B, k) int64 indices, ascending.
    """
    ranked = scores if candidates is None else scores.masked_fill(~candidates, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values


def check_k(k: int, patches: int | None = None) -> int:
    """Return `k` if it is a valid budget: an int, not a bool, from 0 to the number of patches.

    Args:
        k: the budget.
        patches: N; None if it isn't known yet.

    Raises:
        TypeError: for a bool, a float or anything else that isn't an int.
        ValueError: for a negative number, or a number above N.
    """
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise TypeError(f"k must be an int, the number of patches to keep, not {type(k).__name__} {k!r}")
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if patches is not None and k > patches:
        raise ValueError(f"k is {k}, but an image has only {patches} patches")
    return int(k)


class AudioTokenSubstituter:
    """Puts a sound into the CLS slot and keeps the k patches most similar to it (Algorithm 1, lines 7 to 12).

    Args:
        k: number of patches that keep their value, 0 to N.
        norm: "keep" leaves the sound unchanged, as in the paper; "match" scales it to the norm of the CLS token that
            it replaces.

    Raises:
        TypeError, ValueError: for a `k` that isn't a non-negative int, or an unknown `norm`.
    """

    def __init__(self, k: int, *, norm: Norm = "keep") -> None:
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}, not {norm!r}")
        self.k = check_k(k)
        self.norm = norm

    def __call__(self, tokens: Tensor, audio: Tensor) -> Tensor:
        """Substitute and zero.

        Args:
            tokens: (B, N+1, D) tower output, CLS first. Not changed.
            audio: (B, D) sounds in the tower's space, of any float dtype. They are compared in float32.

        Returns:
            (B, N+1, D) in the dtype and on the device of `tokens`.

        Raises:
            ValueError: if shapes don't fit or k is above N; the message names the numbers.
        """
        return self.zero(tokens, audio, self.select(tokens, audio))

    def select(self, tokens: Tensor, audio: Tensor, candidates: Tensor | None = None) -> Selection:
        """Choose the k patches with the largest cosine; ties go to the lower index.

        Other arguments and errors are those of a call. No gradient flows through the choice.

        Args:
            candidates: as in `best`.
        """
        self._check(tokens, audio)
        with torch.no_grad():
            sound = _unit(audio.to(tokens.device))
            # Multiply and sum row by row, so that equal patches tie exactly in any batch.
            similarity = (_unit(tokens[:, 1:]) * sound.unsqueeze(1)).sum(-1).clamp(-1, 1)
            return Selection(similarity, best(similarity, self.k, candidates))

    def zero(self, tokens: Tensor, audio: Tensor, selection: Selection) -> Tensor:
        """(B, N+1, D): the sound, then the patches, with zeros for those that `selection` doesn't keep."""
        patches = tokens[:, 1:].masked_fill(~selection.mask.unsqueeze(-1), 0)
        return torch.cat([self._slot(tokens, audio), patches], dim=1)

    def drop(self, tokens: Tensor, audio: Tensor, selection: Selection) -> Tensor:
        """(B, k+1, D): the sound, then only the kept patches, in their spatial order."""
        index = selection.kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return torch.cat([self._slot(tokens, audio), tokens[:, 1:].gather(1, index)], dim=1)

    def _slot(self, tokens: Tensor, audio: Tensor) -> Tensor:
        audio = audio.to(tokens.device)
        if self.norm == "match":
            size = tokens[:, 0].float().norm(dim=-1, keepdim=True)
            audio = _unit(audio) * size
        return audio.to(tokens.dtype).unsqueeze(1)

    def _check(self, tokens: Tensor, audio: Tensor) -> None:
        if tokens.ndim != 3 or tokens.shape[1] < 1:
            raise ValueError(f"tokens must be (B, N+1, D) with CLS first, not {tuple(tokens.shape)}")
        if audio.ndim != 2:
            raise ValueError(f"audio must be (B, D), not {tuple(audio.shape)}")
        if not tokens.is_floating_point() or not audio.is_floating_point():
            raise ValueError(f"tokens and audio must be floats, not {tokens.dtype} and {audio.dtype}")
        if len(audio) != len(tokens):
            raise ValueError(f"{len(audio)} sounds for {len(tokens)} images: give one sound per image")
        if audio.shape[-1] != tokens.shape[-1]:
            raise ValueError(f"a sound of width {audio.shape[-1]} for tokens of width {tokens.shape[-1]}")
        check_k(self.k, tokens.shape[1] - 1)


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors (..., D) to length 1 in float32. A zero vector stays zero.

    They are first divided by their largest entry: squares of very small or large values would leave float32's range.
    """
    vectors = vectors.float()
    tiny = torch.finfo(torch.float32).tiny
    vectors = vectors / vectors.abs().amax(dim=-1, keepdim=True).clamp_min(tiny)
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(tiny)
