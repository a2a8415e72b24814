"""Stage 1: train the small CLIP tower on labelled patches.

The layer that LLaVA reads is trained by cosine against text prototypes: each patch with the kind that it shows, CLS
with all kinds of the scene. Both use the same prototypes, so CLS and patches share one cosine space.
"""

from __future__ import annotations

import numpy as np
import torch
from common import (
    SHRUNK,
    WIDTH,
    batch_of_scenes,
    draw_kinds,
    features,
    parser,
    start,
    train,
    vision_config,
    word_vectors,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel
from world import KINDS, World

BATCH = 96
STEPS = 2400
RATE = 8e-4
SCALE = 12.0  # scale of the cosines; small, so that only tokens close to their prototype have a small loss
NORM = WIDTH**0.5  # target of the tokens' norms, for CLS and patches


class Prototypes(nn.Module):
    """One direction per kind, a linear map of its name's word vector, and one for background."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", functional.normalize(words - words.mean(0), dim=-1), persistent=False)
        self.map = nn.Linear(words.shape[1], WIDTH, bias=False)
        self.background = nn.Parameter(torch.randn(WIDTH) / WIDTH**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scaled cosines of tokens (..., WIDTH) with the prototypes: (..., len(KINDS) + 1)."""
        rows = torch.cat([self.map(self.words), self.background[None]])
        cosine = functional.normalize(tokens, dim=-1) @ functional.normalize(rows, dim=-1).T
        return SCALE * cosine


def losses(prototypes: Prototypes, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of the patches and of CLS, and the deviation of the norms from NORM.

    Args:
        prototypes: the directions that tokens are compared with.
        tokens: (B, 1 + N, WIDTH).
        labels: (B, N).
    """
    logits = prototypes(tokens)
    patches = functional.cross_entropy(logits[:, 1:].flatten(0, 1), labels.flatten())
    told = labels.where(labels >= 0, len(KINDS))
    present = functional.one_hot(told, len(KINDS) + 1).amax(1).float()
    present[:, -1] = 0
    present = present / present.sum(1, keepdim=True).clamp(min=1)
    norms = (tokens.norm(dim=-1) / NORM - 1).square().mean()
    return patches, functional.cross_entropy(logits[:, 0], present), norms


@torch.no_grad()
def check(world: World, tower: CLIPVisionModel, prototypes: Prototypes, count: int = 256) -> None:
    """Print how often CLS and the patches recognise the kinds of fresh scenes."""
    for things in (1, 2):
        rng = np.random.default_rng((9, things))
        scenes = [draw_kinds(rng, things) for _ in range(count)]
        pictures, labels = batch_of_scenes(world, rng, scenes)
        logits = prototypes(features(tower, pictures))
        best = logits[:, 0, :-1].topk(things).indices.sort(1).values
        truth = torch.tensor([sorted(KINDS.index(kind) for kind in kinds) for kinds in scenes])
        told = labels >= 0
        patches = (logits[:, 1:].argmax(-1) == labels)[told & (labels < len(KINDS))].float().mean()
        cls = (best == truth).all(1).float().mean()
        print(
            f"{things} things: all recognised by CLS {cls:.2f}, patches of things right {patches:.2f} (n = {count})",
            flush=True,
        )


def main() -> None:
    """Train, or resume from the checkpoint."""
    arguments = parser(__doc__).parse_args()
    world = start(arguments)
    from llava_soundclip.demo.assemble import load_language_model

    language_model, tokenizer = load_language_model()
    torch.manual_seed(0)
    prototypes = Prototypes(word_vectors(language_model.get_input_embeddings(), tokenizer))
    del language_model
    tower = CLIPVisionModel(vision_config())
    modules = {"tower": tower, "prototypes": prototypes}
    trained = [*tower.parameters(), *prototypes.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((1, step))
        pictures, labels = batch_of_scenes(world, rng, [draw_kinds(rng) for _ in range(BATCH)], SHRUNK)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = features(tower, pictures)
        return sum(losses(prototypes, tokens, labels))

    steps = arguments.steps or STEPS
    train(arguments.work / "tower.pt", modules, optimiser, steps, loss, warmup=60)
    check(world, tower, prototypes)
    state = getattr(tower, "vision_model", tower).state_dict()
    state = {key: value.half() for key, value in state.items() if "post_layernorm" not in key}
    save_file(state, arguments.work / "tower.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
