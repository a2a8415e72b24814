"""Room in a prompt: as many placeholder tokens as an image has visual tokens while a sound is heard.

A processor writes `stock` placeholders for an image. With a sound it is `wanted` visual tokens, so ids, attention
mask and labels are stretched (or shortened) to fit, and the ids that come back are the caller's.

Shapes: B rows, L tokens as the caller has them, L' tokens with room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor


def count_images(ids: Tensor, *, placeholder: int, stock: Sequence[int]) -> list[int]:
    """Images in each row of a prompt, by its runs of placeholders; a run may hold several.

    Args:
        ids: (B, L) int64.
        placeholder: id of the image token.
        stock: placeholders of each image as the processor writes them, in the order of the images.

    Raises:
        ValueError: if a run isn't a whole number of images, as after a truncation, or if there are more runs
            than images; the numbers are named.
    """
    images = []
    left = list(reversed(stock))
    for row, is_placeholder in enumerate((ids == placeholder).cpu()):
        before = len(left)
        values, lengths = torch.unique_consecutive(is_placeholder, return_counts=True)
        for length in lengths[values].tolist():
            missing = length
            while missing > 0:
                if not left:
                    raise ValueError(
                        f"{len(stock)} images given, but the prompt has image tokens for more: "
                        f"row {row} has {length} in a run, {missing} of them too many"
                    )
                if left[-1] > missing:
                    raise ValueError(
                        f"row {row} of the prompt has a run of {length} image tokens, but an image is "
                        f"{left[-1]}: were they cut by max_length, or was the prompt made by another processor?"
                    )
                missing -= left.pop()
        images.append(before - len(left))
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
    ids: Tensor,
    *,
    placeholder: int,
    images: Sequence[int],
    stock: Sequence[int],
    wanted: Sequence[int],
    attention_mask: Tensor | None,
) -> Room:
    """Plan `wanted` placeholders for each image where the processor wrote `stock`.

    Rows end up as long as the longest one needs. The caller's padding is used first, then new padding comes on
    the same side; on the left, as generation needs it, if there was none.

    Args:
        ids: (B, L) int64 prompt.
        placeholder: id of the image token.
        images: images in each row, from `count_images`.
        stock: placeholders of each image as the processor wrote them, in the order of the images.
        wanted: placeholders of each image as the model needs them, 1 or more.
        attention_mask: (B, L), or None.
    """
    is_real = torch.ones_like(ids) if attention_mask is None else attention_mask
    pad_right = not bool(is_real[:, -1].all())
    rows = []
    sizes = iter(zip(stock, wanted, strict=True))
    for row_ids, row_is_real, count in zip(ids.cpu(), is_real.cpu(), images, strict=True):
        rows.append(_row(row_ids == placeholder, row_is_real, list(islice(sizes, count))))
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


def _row(is_placeholder: Tensor, is_real: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Positions of one row's padding before, its tokens with room, and its padding after.

    The first placeholder of an image repeats, or its last ones go.
    """
    repeats = torch.ones_like(is_placeholder, dtype=torch.int64)
    # Runs are whole images, so the row's placeholders are its images' one after the other.
    each = [torch.tensor([1 + max(wanted - stock, 0), *[1] * (stock - 1)]) for stock, wanted in sizes]
    for image, (_, wanted) in zip(each, sizes, strict=True):
        image[wanted:] = 0
    if each:
        repeats[is_placeholder] = torch.cat(each)
    start, stop = _extent(is_real)
    positions = torch.arange(len(repeats))
    row = positions[start:stop].repeat_interleave(repeats[start:stop])
    return [positions[:start], row, positions[stop:]]


def _extent(is_real: Tensor) -> tuple[int, int]:
    """Where the tokens of a row begin and end between its padding."""
    real = is_real.nonzero()[:, 0].tolist()
    return (real[0], real[-1] + 1) if real else (0, 0)
