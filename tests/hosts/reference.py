"""What the paper says, slowly: Algorithm 1 as a loop, and a LLaVA put together by hand from its parts."""

import math
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tests.conftest import IMAGE_TOKEN


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return dot / size if size else 0.0


def algorithm_1(
    tokens: Tensor, audio: Tensor, k: int, candidates: Collection[int] | None = None
) -> tuple[Tensor, list[int]]:
    """One image: tokens (N+1, D), audio (D,) in the tower's space. Lines 7 to 12, and the kept patches."""
    patches = tokens[1:].tolist()
    similarity = [cosine(audio.tolist(), patch) for patch in patches]
    places = range(len(patches)) if candidates is None else candidates
    best = sorted(places, key=lambda i: (-similarity[i], i))[:k]
    rows = [audio.tolist()]
    for i, patch in enumerate(patches):
        rows.append(patch if i in best else [0.0] * len(patch))
    return torch.tensor(rows, dtype=tokens.dtype), sorted(best)


def pad_or_cut(vector: Tensor, width: int) -> Tensor:
    """F.2, Non-Aligned."""
    values = vector.tolist()[:width]
    return torch.tensor(values + [0.0] * (width - len(values)))


def hear_llava(
    model: Any, pictures: Mapping[str, Tensor], embeddings: Tensor, k: int, tokens: str
) -> list[Tensor]:
    """Visual tokens of each image, (N+1, hidden) or (k+1, hidden)."""
    return hear_at(
        model, [model.config.vision_feature_layer], pictures["pixel_values"], embeddings, k, tokens
    )


def hear_vip_llava(
    model: Any, pictures: Mapping[str, Tensor], embeddings: Tensor, k: int, tokens: str
) -> list[Tensor]:
    """The same of three layers side by side, chosen at the deepest, which is the first of the list."""
    layers = list(model.config.vision_feature_layers)
    assert layers[0] == -1
    return hear_at(model, layers, pictures["pixel_values"], embeddings, k, tokens)


def hear_llava_next(
    model: Any, pictures: Mapping[str, Tensor], embeddings: Tensor, k: int, tokens: str
) -> list[Tensor]:
    """Visual tokens of each image: the base tile, the grid's slots, then its rows with a newline each."""
    config, project = model.config, model.model.multi_modal_projector
    side = config.vision_config.image_size // config.vision_config.patch_size
    visual = []
    for image, embedding, size in zip(
        pictures["pixel_values"], embeddings, pictures["image_sizes"].tolist(), strict=True
    ):
        down, across = (
            pixels // config.vision_config.image_size
            for pixels in select_best_resolution(size, config.image_grid_pinpoints)
        )
        kept_rows, kept_columns = unpadded(size, down * side, across * side)
        places: list[set[int]] = [set(range(side * side)), *(set() for _ in range(down * across))]
        for row, column in product(kept_rows, kept_columns):
            tile, patch = tile_and_patch(row, column, side, across)
            places[tile].add(patch)
        sound = pad_or_cut(embedding, config.vision_config.hidden_size)
        edited, kept = [], []
        for tile, candidates in enumerate(places):
            states = model.model.vision_tower(image[None, tile], output_hidden_states=True).hidden_states
            result, best = algorithm_1(states[config.vision_feature_layer][0], sound, k, candidates)
            edited.append(project(result))
            kept.append(best if tokens == "drop" else range(side * side))
        sequence = [edited[0][0], *(edited[0][1 + patch] for patch in kept[0])]
        sequence += [tile[0] for tile in edited[1:]]
        for row in kept_rows:
            for column in kept_columns:
                tile, patch = tile_and_patch(row, column, side, across)
                if patch in kept[tile]:
                    sequence.append(edited[tile][1 + patch])
            sequence.append(model.model.image_newline)
        visual.append(torch.stack(sequence))
    return visual


def tile_and_patch(row: int, column: int, side: int, across: int) -> tuple[int, int]:
    """Which tile of an image, the base tile being 0, and which patch of it stands there in the grid."""
    return 1 + row // side * across + column // side, row % side * side + column % side


def unpadded(size: list[int], rows: int, columns: int) -> tuple[range, range]:
    """Rows and columns of the grid that show something of a picture of this (height, width)."""
    height, width = size
    if width * rows > height * columns:  # wider than its grid: padded above and below
        padding = (rows - int(height * columns / width)) // 2
        return range(padding, rows - padding), range(columns)
    padding = (columns - int(width * rows / height)) // 2
    return range(rows), range(padding, columns - padding)


def hear_at(
    model: Any, layers: list[int], pixel_values: Tensor, embeddings: Tensor, k: int, tokens: str
) -> list[Tensor]:
    """Visual tokens from some layers of the tower; the patches are chosen at the first of them."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    visual = []
    for image, embedding in enumerate(embeddings):
        sound = pad_or_cut(embedding, states[0].shape[-1])
        _, kept = algorithm_1(states[layers[0]][image], sound, k)
        rows = []
        for patch in [None, *range(states[0].shape[1] - 1)]:
            if patch is None:
                rows.append(torch.cat([sound] * len(layers)))
            elif patch in kept:
                rows.append(torch.cat([states[layer][image, 1 + patch] for layer in layers]))
            elif tokens == "zero":
                rows.append(torch.zeros(len(layers) * len(sound)))
        visual.append(model.model.multi_modal_projector(torch.stack(rows).to(states[0].dtype)))
    return visual


def prompt_embeddings(model: Any, ids: list[int], visual: list[Tensor], stock: list[int]) -> Tensor:
    """(L', hidden): the words of one row, and each image's visual tokens where its placeholders were."""
    words = model.get_input_embeddings()
    pieces, place, images = [], 0, iter(zip(visual, stock, strict=True))
    while place < len(ids):
        if ids[place] == IMAGE_TOKEN:
            tokens, placeholders = next(images)
            pieces.append(tokens)
            place += placeholders
        else:
            pieces.append(words(torch.tensor([ids[place]])))
            place += 1
    return torch.cat(pieces)


def read_up_to(ids: list[int], visual: list[int], stock: list[int], *, image: int = IMAGE_TOKEN) -> list[int]:
    """For each token of a prompt, the embedding that is last read up to its place.

    The tokens of an image fill its placeholders in order. If there is one more, the first placeholder has two; the
    placeholders that are left over have none.
    """
    read, last, place = [], -1, 0
    images = iter(zip(visual, stock, strict=True))
    while place < len(ids):
        if ids[place] != image:
            last += 1
            read.append(last)
            place += 1
            continue
        tokens, placeholders = next(images)
        for placeholder in range(placeholders):
            if placeholder == 0 and tokens > placeholders:
                last += tokens - placeholders
            if placeholder < tokens:
                last += 1
            read.append(last)
        place += placeholders
    return read


def logits(model: Any, embeddings: Tensor) -> Tensor:
    """(L', vocabulary) of one row without padding or cache."""
    hidden = model.model.language_model(inputs_embeds=embeddings[None]).last_hidden_state
    return model.lm_head(hidden)[0]


def greedy(model: Any, embeddings: Tensor, new: int) -> list[int]:
    """Greedy decoding without a cache, a token at a time."""
    words = model.get_input_embeddings()
    generated = []
    for _ in range(new):
        best = int(logits(model, embeddings)[-1].argmax())
        generated.append(best)
        embeddings = torch.cat([embeddings, words(torch.tensor([best]))])
    return generated
