"""Room in a prompt: one placeholder token for each visual token that an image has with a sound.

A processor writes `stock` placeholders for an image. With a sound the image has `wanted` visual tokens. So ids,
attention mask and labels are stretched or shortened to fit, and `restore` gives back the caller's ids.

Shapes: B rows, L tokens in the caller's prompt, L' tokens with room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor


def count_images(ids: Tensor, *, placeholder: int, stock: Sequence[int]) -> list[int]:
    """The number of images in each row of a prompt, from its runs of placeholders. A run may hold several images.

    Args:
        ids: (B, L) int64.
        placeholder: id of the image token.
        stock: number of placeholders that the processor writes for each image, in the order of the images.

    Returns:
        B numbers.

    Raises:
        ValueError: if a run isn't a whole number of images, as after truncation, or if there are more runs than
            images. The message names the numbers.
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
    """The plan of a stretched or shortened prompt: the origin of each token.

    Attributes:
        source: (B, L') int64, the position in the caller's row; -1 for padding.
        is_new: (B, L') bool, true for added placeholders.
        ids: (B, L) int64, the caller's own prompt.
    """

    source: Tensor
    is_new: Tensor
    ids: Tensor

    @property
    def growth(self) -> int:
        """L' - L; negative if patches are dropped from the prompt."""
        return self.source.shape[1] - self.ids.shape[1]

    @property
    def is_padded(self) -> bool:
        """Whether padding was added because rows grew by different numbers."""
        return bool((self.source < 0).any())

    def stretch(self, values: Tensor, *, padding: int, new: int | None = None) -> Tensor:
        """Move values from (B, L) to their new places, (B, L').

        Args:
            values: one value per token.
            padding: value for new padding.
            new: value for added placeholders; by default the value of their image's first placeholder.
        """
        source, is_new = self.source.to(values.device), self.is_new.to(values.device)
        result = values.gather(1, source.clamp_min(0)).masked_fill(source < 0, padding)
        return result if new is None else result.masked_fill(is_new, new)

    def restore(self, sequences: Tensor) -> Tensor:
        """Replace the prompt of sequences by the caller's: (R, L' + new tokens) to (R, L + new tokens).

        R is B times the number of beams or returned sequences; the rows of one prompt are adjacent.
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
    """Plan `wanted` placeholders for each image, for which the processor wrote `stock`.

    All rows get the length that the longest row needs. The caller's padding is used first, then new padding is added on
    the same side. If there was no padding, it is added on the left, as generation needs it.

    Args:
        ids: (B, L) int64 prompt.
        placeholder: id of the image token.
        images: number of images in each row, from `count_images`.
        stock: number of placeholders that the processor wrote for each image, in the order of the images.
        wanted: number of placeholders that the model needs for each image, 1 or more.
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
    """Positions of one row's padding before its tokens, of its tokens with room, and of its padding after them.

    An image's first placeholder is repeated, or its last ones are removed.
    """
    repeats = torch.ones_like(is_placeholder, dtype=torch.int64)
    # Runs are whole images, so the row's placeholders belong to its images one after another.
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
    """Start and end of a row's tokens, without its padding."""
    real = is_real.nonzero()[:, 0].tolist()
    return (real[0], real[-1] + 1) if real else (0, 0)
