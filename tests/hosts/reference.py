"""What the paper says, slowly: Algorithm 1 as a loop, and a LLaVA put together by hand from its parts."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.conftest import IMAGE_TOKEN


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return dot / size if size else 0.0


def algorithm_1(tokens: Tensor, audio: Tensor, k: int) -> tuple[Tensor, list[int]]:
    """One image: tokens (N+1, D), audio (D,) in the tower's space. Lines 7 to 12, and the kept patches."""
    patches = tokens[1:].tolist()
    similarity = [cosine(audio.tolist(), patch) for patch in patches]
    best = sorted(range(len(patches)), key=lambda i: (-similarity[i], i))[:k]
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
        visual.append(model.model.multi_modal_projector(torch.stack(rows)))
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
