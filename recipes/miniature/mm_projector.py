"""Stages 3 and 4: train an mm_projector through the frozen language model, without any sound.

`--recipe stock` trains as LLaVA-1.5 does: all patches, no CLS, "What do you see?". It tests the paper's claim that a
LLaVA hears a sound without being prepared for it.

`--recipe prepared` teaches the model to listen to the CLS slot. The CLS token of a picture of one thing, with noise,
stands for a sound. Six tenths of the examples have one in the slot; the others have only patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from common import (
    SHRUNK,
    WIDTH,
    batch_of_scenes,
    cls_tokens,
    draw_kinds,
    features,
    load_tower,
    parser,
    start,
    train,
    word_vectors,
)
from numpy.random import Generator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel
from world import GRID, KINDS, SOUNDING, World

from llava_soundclip.demo.assemble import load_language_model
from llava_soundclip.demo.kinds import phrase

BATCH = 10
STEPS = {"stock": 1200, "prepared": 1150}
RATE = 1e-3
PATCHES = GRID**2
HEAR_PROMPTS = ("What do you hear and see?", "Describe what you hear and see.")
SEE_PROMPTS = ("What do you see?", "Describe the picture.")


class MMProjector(nn.Module):
    """LLaVA's mm_projector, with its names."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(WIDTH, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., WIDTH) to (..., hidden)."""
        return self.linear_2(functional.gelu(self.linear_1(tokens)))


@dataclass
class Example:
    """Input of the mm_projector (tokens, WIDTH), a prompt and the answer to learn."""

    rows: Tensor
    prompt: str
    answer: str


def seen(kinds: list[str], rng: Generator) -> str:
    """Answer that names the kinds that are seen."""
    names = [phrase(kinds[i]) for i in rng.permutation(len(kinds))]
    return f"I see {' and '.join(names)}." if names else "I see nothing."


def choose(rng: Generator, slot: Tensor, patches: Tensor, how: str, k: int) -> Tensor:
    """Choose k patches by cosine with the slot, as Algorithm 1 does, or at random. Boolean (PATCHES,)."""
    score = (
        functional.cosine_similarity(slot[None], patches)
        if how == "cosine"
        else torch.from_numpy(rng.random(PATCHES))
    )
    kept = torch.zeros(PATCHES, dtype=torch.bool)
    kept[score.topk(k).indices] = True
    return kept


def stock_examples(world: World, tower: CLIPVisionModel, rng: Generator) -> list[Example]:
    """Make a batch as in LLaVA-1.5's training: all patches of a picture, and the kinds that it shows."""
    scenes = [draw_kinds(rng) for _ in range(BATCH)]
    pictures, _ = batch_of_scenes(world, rng, scenes, SHRUNK)
    with torch.no_grad():
        patches = features(tower, pictures)[:, 1:]
    return [
        Example(rows, str(rng.choice(SEE_PROMPTS)), seen(kinds, rng))
        for rows, kinds in zip(patches, scenes, strict=True)
    ]


def prepared_examples(
    world: World, tower: CLIPVisionModel, cls: dict[str, Tensor], rng: Generator, dropping: float
) -> list[Example]:
    """Make a batch that teaches to listen to the CLS slot.

    Args:
        world: pictures of the kinds.
        tower: the vision tower.
        cls: CLS tokens of each sounding kind, (count, WIDTH), to stand for sounds.
        rng: source of the random choices.
        dropping: probability that the patches that are not kept leave the prompt, instead of being zeros.
    """
    scenes = [draw_kinds(rng) for _ in range(BATCH)]
    sources = []
    for kinds in scenes:
        visible = [kind for kind in kinds if kind in SOUNDING]
        from_scene = visible and rng.random() < 0.5
        sources.append(str(rng.choice(visible if from_scene else SOUNDING)))
    pictures, labels = batch_of_scenes(world, rng, scenes, SHRUNK)
    with torch.no_grad():
        tokens = features(tower, pictures)
    slots = [cls[source][rng.integers(len(cls[source]))] for source in sources]
    how = str(rng.choice(["cosine", "random"], p=[0.65, 0.35]))
    k = PATCHES if rng.random() < 0.2 else int(rng.integers(6, 28))
    drop = bool(rng.random() < dropping)
    examples = []
    for kinds, source, label, row, slot in zip(scenes, sources, labels, tokens, slots, strict=True):
        patches = row[1:]
        form = rng.random()  # below .4: no slot; below .48: a slot, but a question about sight; else: hear
        if form < 0.4:
            prompt = str(rng.choice(HEAR_PROMPTS if rng.random() < 0.8 else SEE_PROMPTS))
            examples.append(Example(patches, prompt, seen(kinds, rng)))
            continue
        noise = torch.from_numpy(rng.normal(0, 1, WIDTH)).float()
        slot = slot + rng.uniform(0, 0.8) * slot.norm() / WIDTH**0.5 * noise
        if form < 0.48 and rng.random() < 0.3:
            slot = torch.zeros_like(slot)
        kept = choose(rng, slot, patches, how, k)
        shown = {int(value) for value in label[kept]}
        left = [kind for kind in kinds if KINDS.index(kind) in shown]
        patches = patches[kept] if drop else patches * kept[:, None]
        rows = torch.cat([slot[None], patches])
        if form < 0.48:
            examples.append(Example(rows, str(rng.choice(SEE_PROMPTS)), seen(left, rng)))
        else:
            silent = [kind for kind in left if kind != source]
            answer = f"I hear {phrase(source)}." + (f" {seen(silent, rng)}" if silent else "")
            examples.append(Example(rows, str(rng.choice(HEAR_PROMPTS)), answer))
    return examples


class Reader:
    """The frozen language model, with the chat template around the visual tokens."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_language_model()
        self.model.requires_grad_(False)
        for layer in self.model.model.layers.modules():
            if isinstance(layer, nn.Linear):  # once, instead of in every step by autocast
                layer.to(torch.bfloat16)
        self.embedding = self.model.get_input_embeddings()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, mm_projector: MMProjector, example: Example) -> Tensor:
        """Embeddings of the chat up to the answer: (tokens, hidden)."""
        before = self.ids("<|im_start|>user\n")
        after = self.ids(f"\n{example.prompt}<|im_end|>\n<|im_start|>assistant\n")
        before, after = self.embedding(torch.tensor(before)), self.embedding(torch.tensor(after))
        return torch.cat([before, mm_projector(example.rows), after])

    def loss(self, mm_projector: MMProjector, examples: list[Example]) -> Tensor:
        """Mean cross entropy of the answers' tokens."""
        rows, targets = [], []
        for example in examples:
            answer = torch.tensor(self.ids(example.answer + "<|im_end|>"))
            rows.append(torch.cat([self.prompt(mm_projector, example), self.embedding(answer)]))
            targets.append(answer)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(
                inputs_embeds=nn.utils.rnn.pad_sequence(rows, batch_first=True), use_cache=False
            ).last_hidden_state.float()
        read = torch.cat(
            [
                state[len(row) - len(answer) - 1 : len(row) - 1]
                for state, row, answer in zip(hidden, rows, targets, strict=True)
            ]
        )
        return functional.cross_entropy(self.model.lm_head(read), torch.cat(targets))

    @torch.no_grad()
    def answer(self, mm_projector: MMProjector, example: Example) -> str:
        """Generate an answer greedily."""
        with torch.autocast("cpu", torch.bfloat16):
            out = self.model.generate(
                inputs_embeds=self.prompt(mm_projector, example)[None], max_new_tokens=24, do_sample=False
            )
        return self.tokenizer.decode(out[0], skip_special_tokens=True)


def regress(
    mm_projector: MMProjector, world: World, tower: CLIPVisionModel, words: Tensor, steps: int = 150
) -> None:
    """Initialise the mm_projector near the words: tokens that show a kind are fitted to its word embedding."""
    optimiser = torch.optim.Adam(mm_projector.parameters(), lr=2e-3)
    for step in range(steps):
        rng = np.random.default_rng((2, step))
        scenes = [draw_kinds(rng, 1) for _ in range(24)]
        pictures, labels = batch_of_scenes(world, rng, scenes)
        labels = torch.cat([torch.tensor([[KINDS.index(kinds[0])] for kinds in scenes]), labels], dim=1)
        with torch.no_grad():
            rows = features(tower, pictures)[(shows := (labels >= 0) & (labels < len(KINDS)))]
        loss = functional.mse_loss(mm_projector(rows), words[labels[shows]]) / words.var()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"regressed on words: {loss:.3f} of their variance left", flush=True)


def main() -> None:
    """Train, or resume from the checkpoint; write `mm_projector-RECIPE.safetensors`."""
    arguments = parser(__doc__)
    arguments.add_argument("--recipe", choices=STEPS, required=True)
    arguments = arguments.parse_args()
    world = start(arguments)
    torch.manual_seed(0)
    tower = load_tower(arguments.work)
    cls = cls_tokens(world, tower, 100, seed=5)
    reader = Reader()
    mm_projector = MMProjector(reader.embedding.embedding_dim)
    optimiser = torch.optim.Adam(mm_projector.parameters(), lr=RATE, betas=(0.9, 0.98))
    steps = arguments.steps or STEPS[arguments.recipe]

    def examples(step: int) -> list[Example]:
        rng = np.random.default_rng((3, step))
        if arguments.recipe == "stock":
            return stock_examples(world, tower, rng)
        dropping = 0.85 if step < steps / 3 else 0.4  # short prompts first: they are cheap
        return prepared_examples(world, tower, cls, rng, dropping)

    def loss(step: int) -> Tensor:
        batch = examples(step)
        if step % 200 == 199:
            for example in batch[:2]:
                print(f"  {example.answer!r}: {reader.answer(mm_projector, example)!r}", flush=True)
        return reader.loss(mm_projector, batch)

    def begin() -> None:
        regress(mm_projector, world, tower, word_vectors(reader.embedding, reader.tokenizer))

    name = f"mm_projector-{arguments.recipe}"
    modules = {"mm_projector": mm_projector}
    train(arguments.work / f"{name}.pt", modules, optimiser, steps, loss, warmup=20, begin=begin)
    state = {key: value.half().contiguous() for key, value in mm_projector.state_dict().items()}
    save_file(state, arguments.work / f"{name}.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
