"""What the paper says, slowly: Algorithm 1 as a loop, and a LLaVA put together by hand from its parts."""

import math

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


def hear(model, pixel_values: Tensor, embeddings: Tensor, k: int, tokens: str) -> list[Tensor]:
    """Visual tokens of each image, (N+1, hidden) or (k+1, hidden)."""
    layers = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    visual = []
    for image, embedding in zip(layers[layer], embeddings, strict=True):
        edited, kept = algorithm_1(image, pad_or_cut(embedding, image.shape[-1]), k)
        if tokens == "drop":
            edited = edited[[0, *(i + 1 for i in kept)]]
        visual.append(model.model.multi_modal_projector(edited))
    return visual


def prompt_embeddings(model, ids: list[int], visual: list[Tensor], stock: int) -> Tensor:
    """(L', hidden): the words of one row, and each image's visual tokens where its placeholders were."""
    words = model.get_input_embeddings()
    pieces, place, images = [], 0, iter(visual)
    while place < len(ids):
        if ids[place] == IMAGE_TOKEN:
            pieces.append(next(images))
            place += stock
        else:
            pieces.append(words(torch.tensor([ids[place]])))
            place += 1
    return torch.cat(pieces)


def logits(model, embeddings: Tensor) -> Tensor:
    """(L', vocabulary) of one row without padding or cache."""
    hidden = model.model.language_model(inputs_embeds=embeddings[None]).last_hidden_state
    return model.lm_head(hidden)[0]


def greedy(model, embeddings: Tensor, new: int) -> list[int]:
    """Greedy decoding without a cache, a token at a time."""
    words = model.get_input_embeddings()
    generated = []
    for _ in range(new):
        best = int(logits(model, embeddings)[-1].argmax())
        generated.append(best)
        embeddings = torch.cat([embeddings, words(torch.tensor([best]))])
    return generated
