"""Room in a prompt: as many placeholder tokens as an image has visual tokens while it sounds.

A processor writes `stock` placeholders an image. With a sound an image is `wanted` visual tokens, so ids,
attention mask and labels are stretched (or shortened) to fit, and the ids that come back are the caller's.

Shapes: B rows, L tokens as the caller has them, L' tokens with room.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def count_images(ids: Tensor, *, placeholder: int, stock: int) -> list[int]:
    """Images in each row of a prompt, by its runs of placeholders.

    Args:
        ids: (B, L) int64.
        placeholder: id of the image token.
        stock: placeholders an image as the processor writes them.

    Raises:
        ValueError: if a run isn't a whole number of images, as after a truncation; both numbers are named.
    """
    images = []
    for row, is_placeholder in enumerate((ids == placeholder).cpu()):
        values, lengths = torch.unique_consecutive(is_placeholder, return_counts=True)
        for length in lengths[values].tolist():
            if length % stock:
                raise ValueError(
                    f"row {row} of the prompt has a run of {length} image tokens, but an image is {stock}: "
                    "were they cut by max_length, or was the prompt made by another processor?"
                )
        images.append(int(lengths[values].sum()) // stock)
    return images


@dataclass(frozen=True)
class Room:
    """Where each token of the longer (or shorter) prompt comes from.

    Attributes:
        source: (B, L') int64 position in the caller's row, -1 for padding.
        is_new: (B, L') bool, true for added placeholders.
        ids: (B, L) int64, the caller's own prompt.
    """

    source: Tensor
    is_new: Tensor
    ids: Tensor

    @property
    def growth(self) -> int:
        """L' - L; negative where patches leave the prompt."""
        return self.source.shape[1] - self.ids.shape[1]

    @property
    def is_padded(self) -> bool:
        """Whether rows grew unequally, so that padding came in."""
        return bool((self.source < 0).any())

    def stretch(self, values: Tensor, *, padding: int, new: int | None = None) -> Tensor:
        """(B, L) values at their new places, (B, L').

        Args:
            values: one value a token.
            padding: the value where padding came in.
            new: the value of added placeholders; by default that of their image's first placeholder.
        """
        source, is_new = self.source.to(values.device), self.is_new.to(values.device)
        result = values.gather(1, source.clamp_min(0)).masked_fill(source < 0, padding)
        return result if new is None else result.masked_fill(is_new, new)

    def restore(self, sequences: Tensor) -> Tensor:
        """Give sequences (R, L' + new tokens) the caller's prompt back: (R, L + new tokens).

        R is B times the beams or returned sequences; the rows of one prompt stand together.
        """
        prompt = self.ids.to(sequences.device)
        prompt = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
        return torch.cat([prompt, sequences[:, self.source.shape[1] :]], dim=1)


def make_room(
    ids: Tensor, *, placeholder: int, stock: int, wanted: int, attention_mask: Tensor | None
) -> Room:
    """Plan `wanted` placeholders for each image where the processor wrote `stock`.

    Rows end up as long as the longest one needs. The caller's padding is used first, then new padding comes on
    the same side; on the left, as generation needs it, if there was none.

    Args:
        ids: (B, L) int64 prompt; its runs of placeholders are whole images (`count_images`).
        placeholder: id of the image token.
        stock: placeholders an image as the processor writes them.
        wanted: placeholders an image as the model needs them.
        attention_mask: (B, L), or None.
    """
    is_real = torch.ones_like(ids) if attention_mask is None else attention_mask
    pad_right = not bool(is_real[:, -1].all())
    rows = [_row(*row, placeholder, stock, wanted) for row in zip(ids.cpu(), is_real.cpu(), strict=True)]
    length = max(len(row) for _, row, _ in rows)
    source = torch.full((len(rows), length), -1)
    for target, (before, row, after) in zip(source, rows, strict=True):
        missing = length - len(row)
        if pad_right:
            target[: len(row)] = row
            after = after[:missing]
            target[len(row) : len(row) + len(after)] = after
        else:
            target[missing:] = row
            before = before[max(len(before) - missing, 0) :]
            target[missing - len(before) : missing] = before
    repeated = torch.zeros_like(source, dtype=torch.bool)
    repeated[:, :-1] = (source[:, :-1] == source[:, 1:]) & (source[:, 1:] >= 0)
    return Room(source.to(ids.device), repeated.to(ids.device), ids)


def _row(ids: Tensor, is_real: Tensor, placeholder: int, stock: int, wanted: int) -> list[Tensor]:
    """Positions of one row's padding before, its tokens with room, and its padding after.

    The first placeholder of an image repeats, or its last ones go.
    """
    is_placeholder = ids == placeholder
    # Placeholders are counted over the whole row: runs are whole images, so the count finds their starts.
    place = (is_placeholder.cumsum(0) - 1) % stock
    repeats = torch.ones_like(ids)
    if wanted >= stock:
        repeats[is_placeholder & (place == 0)] += wanted - stock
    else:
        repeats[is_placeholder & (place >= wanted)] = 0
    start, stop = _extent(is_real)
    positions = torch.arange(len(ids))
    row = positions[start:stop].repeat_interleave(repeats[start:stop])
    return [positions[:start], row, positions[stop:]]


def _extent(is_real: Tensor) -> tuple[int, int]:
    """Where the tokens of a row begin and end between its padding."""
    real = is_real.nonzero()[:, 0].tolist()
    return (real[0], real[-1] + 1) if real else (0, 0)
