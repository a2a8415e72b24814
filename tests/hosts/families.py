"""The families that the conformance tests run through: how each is built, fed and put together by hand.

A new family is one more row of `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from tests.conftest import (
    IMAGE_TOKEN,
    PAD,
    PATCHES,
    TinyEncoder,
    build_tiny_llava,
    build_tiny_llava_next,
    build_tiny_vip_llava,
)
from tests.hosts import reference

K = 4
NEW = 6
RATE = 16_000

Pictures = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One LLaVA family.

    Attributes:
        build: a tiny random model.
        pictures: n random images as the processor gives them, and the placeholders that it writes for each.
        hear: the reference's visual tokens of each image: of a model, its pictures, z_a, k and `tokens`.
    """

    build: Callable[[], Any]
    pictures: Callable[[int, Generator], tuple[Pictures, list[int]]]
    hear: Callable[[Any, Pictures, Tensor, int, str], list[Tensor]]


def square_pictures(stock: int) -> Callable[[int, Generator], tuple[Pictures, list[int]]]:
    def pictures(n: int, generator: Generator) -> tuple[Pictures, list[int]]:
        return {"pixel_values": torch.randn(n, 3, 30, 30, generator=generator)}, [stock] * n

    return pictures


# (height, width), tiles and placeholders of pictures that use different grids; the first two are padded.
TILED = [((40, 60), 5, 9 + 4 * 7), ((90, 15), 4, 9 + 9 * 2), ((30, 60), 3, 9 + 3 * 7)]


def tiled_pictures(n: int, generator: Generator) -> tuple[Pictures, list[int]]:
    pictures = [TILED[i % len(TILED)] for i in range(n)]
    pixel_values = torch.zeros(n, max(tiles for _, tiles, _ in pictures), 3, 30, 30)
    for image, (_, tiles, _) in zip(pixel_values, pictures, strict=True):
        image[:tiles].normal_(generator=generator)
    sizes = torch.tensor([size for size, _, _ in pictures])
    return {"pixel_values": pixel_values, "image_sizes": sizes}, [stock for _, _, stock in pictures]


LLAVA = Family(build_tiny_llava, square_pictures(PATCHES), reference.hear_llava)

FAMILIES = {
    "llava": LLAVA,
    "llava-full": Family(
        lambda: build_tiny_llava(strategy="full"), square_pictures(PATCHES + 1), reference.hear_llava
    ),
    "llava_next-vicuna": Family(build_tiny_llava_next, tiled_pictures, reference.hear_llava_next),
    "llava_next-mistral": Family(
        lambda: build_tiny_llava_next(text="Mistral"), tiled_pictures, reference.hear_llava_next
    ),
    "vip_llava": Family(build_tiny_vip_llava, square_pictures(PATCHES), reference.hear_vip_llava),
}


def make_inputs(images: list[int], *, seed: int = 0, family: Family = LLAVA) -> dict[str, Tensor]:
    """A left-padded batch with so many images in each row; the first two of a row stand side by side."""
    generator = torch.Generator().manual_seed(seed)
    pictures, stock = family.pictures(sum(images), generator)
    placeholders = iter(stock)

    def words(n: int) -> list[int]:
        return torch.randint(3, 90, (n,), generator=generator).tolist()

    rows = []
    for row, count in enumerate(images):
        ids = [1, *words(2 + row)]
        for image in range(count):
            ids += [IMAGE_TOKEN] * next(placeholders) + words(image % 2)
        rows.append(ids + words(3))
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **pictures}


def make_sounds(n: int, *, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(20, generator=generator) * 2 - 1 for _ in range(n)]


def expected_places(
    model: Any,
    inputs: Mapping[str, Tensor],
    sounds: list[Tensor],
    k: int,
    tokens: str,
    *,
    family: Family = LLAVA,
) -> list[list[int]]:
    """For each token of each row, without padding, the last embedding of `expected_rows` that is read up to it."""
    _, stock = family.pictures(len(sounds), torch.Generator())
    visual = [
        len(image) for image in family.hear(model, inputs, TinyEncoder().embed(sounds, RATE), k, tokens)
    ]
    places = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        row = ids[mask.bool()].tolist()
        images = 0
        while sum(stock[:images]) < row.count(IMAGE_TOKEN):
            images += 1
        places.append(reference.read_up_to(row, visual[:images], stock[:images]))
        visual, stock = visual[images:], stock[images:]
    return places


def expected_rows(
    model: Any,
    inputs: Mapping[str, Tensor],
    sounds: list[Tensor],
    k: int,
    tokens: str,
    *,
    family: Family = LLAVA,
) -> list[Tensor]:
    """The prompt of each row as embeddings, made by hand."""
    _, stock = family.pictures(len(sounds), torch.Generator())
    visual = family.hear(model, inputs, TinyEncoder().embed(sounds, RATE), k, tokens)
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[mask.bool()].tolist()
        images = 0
        while sum(stock[:images]) < ids.count(IMAGE_TOKEN):
            images += 1
        rows.append(reference.prompt_embeddings(model, ids, visual[:images], stock[:images]))
        visual, stock = visual[images:], stock[images:]
    return rows
