"""Shared by the training stages: the tower's shape, command-line options, the training loop and its checkpoints."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel
from world import GRID, KINDS, PATCH, SIZE, SOUNDING, World

from llava_soundclip.demo.assemble import BLOCKS, WIDTH, make_config, make_image_processor, tower_state

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SAVED_EVERY = 120  # seconds between checkpoints
SHRUNK = 0.3  # share of the training scenes that have smaller things
SMALLEST = 0.45  # smallest size of a shrunk thing, as a share of its usual size


def vision_config() -> CLIPVisionConfig:
    """Configuration of the trained part of the tower. The assembled tower has one more block, which nothing reads."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=1024,
        num_hidden_layers=BLOCKS,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def pixels(pictures: np.ndarray) -> Tensor:
    """Normalise as the image processor does: uint8 (B, SIZE, SIZE, 3) to float32 (B, 3, SIZE, SIZE)."""
    return torch.from_numpy((pictures.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def load_tower(work: Path) -> CLIPVisionModel:
    """Load the tower that stage 1 trained."""
    tower = CLIPVisionModel(vision_config()).eval().requires_grad_(False)
    state = {key: value.float() for key, value in load_file(work / "tower.safetensors").items()}
    getattr(tower, "vision_model", tower).load_state_dict(state, strict=False)
    return tower


def write_tower_folder(work: Path) -> Path:
    """Save the tower of stage 1, with its image processor, as a folder for `from_pretrained`.

    Returns:
        The folder.
    """
    tower = CLIPVisionModel(make_config({}).vision_config)
    getattr(tower, "vision_model", tower).load_state_dict(tower_state(work))
    tower.save_pretrained(work / "tower")
    make_image_processor().save_pretrained(work / "tower")
    return work / "tower"


def features(tower: CLIPVisionModel, pictures: np.ndarray) -> Tensor:
    """Tokens as LLaVA reads them, after the trained blocks, CLS first: float32 (B, 1 + GRID**2, WIDTH)."""
    return tower(pixels(pictures), output_hidden_states=True).hidden_states[BLOCKS].float()


def draw_kinds(rng: Generator, count: int | None = None) -> list[str]:
    """Choose the kinds of a scene: `count` different ones, else one or two."""
    count = count or (1 if rng.random() < 0.45 else 2)
    return [str(kind) for kind in rng.choice(KINDS, count, replace=False)]


def batch_of_scenes(
    world: World, rng: Generator, scenes: list[list[str]], shrunk: float = 0.0
) -> tuple[np.ndarray, Tensor]:
    """Make scenes.

    Args:
        world: pictures of the kinds.
        rng: source of the random choices.
        scenes: the kinds in each scene.
        shrunk: share of the scenes with smaller things, down to `SMALLEST`.

    Returns:
        Pictures, uint8 (B, SIZE, SIZE, 3), and patch labels, int64 (B, GRID**2): the index of a kind in
        KINDS, len(KINDS) for background, -100 where too little of a thing shows.
    """
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    labels = torch.full((len(scenes), GRID**2), -100)
    for row, kinds in enumerate(scenes):
        pictures[row], places = world.scene(kinds, rng, SMALLEST if rng.random() < shrunk else 1.0)
        meaning = {-1: len(KINDS), -2: -100} | {i: KINDS.index(kind) for i, kind in enumerate(kinds)}
        labels[row] = torch.tensor([meaning[int(place)] for place in places])
    return pictures, labels


def cls_tokens(world: World, tower: CLIPVisionModel, count: int, seed: int) -> dict[str, Tensor]:
    """CLS tokens of pictures that show one sounding kind alone.

    `2 * count` pictures are made of each kind, and the half whose CLS is nearest to their mean is kept. Where a thing
    is hard to recognise, CLS stands for something else.

    Returns:
        A tensor for each kind in SOUNDING, float32 (count, WIDTH).
    """
    tokens = {}
    for index, kind in enumerate(SOUNDING):
        rng = np.random.default_rng((seed, index))
        pictures, _ = batch_of_scenes(world, rng, [[kind]] * (2 * count))
        with torch.no_grad():
            cls = features(tower, pictures)[:, 0]
        nearest = functional.cosine_similarity(cls, cls.mean(0, keepdim=True)).topk(count).indices
        tokens[kind] = cls[nearest]
    return tokens


def word_vectors(embedding: nn.Embedding, tokenizer: Any) -> Tensor:
    """Mean word embedding of each kind's name in the language model, float32 (len(KINDS), hidden)."""
    rows = [
        embedding.weight[tokenizer(" " + kind, add_special_tokens=False).input_ids].mean(0) for kind in KINDS
    ]
    return torch.stack(rows).detach().float()


def parser(description: str) -> argparse.ArgumentParser:
    """Command-line options of every stage."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument(
        "--stamps", type=Path, default=Path("/usr/share/tuxpaint/stamps"), help="folder of Tux Paint's stamps"
    )
    arguments.add_argument(
        "--gcompris",
        type=Path,
        default=Path("/usr/share/gcompris-qt/rcc"),
        help="folder of GCompris' .rcc files",
    )
    arguments.add_argument(
        "--work", type=Path, default=Path("build/demo-weights"), help="folder for checkpoints and features"
    )
    arguments.add_argument("--threads", type=int, default=2, help="number of torch threads")
    arguments.add_argument("--steps", type=int, help="number of steps, for a short trial")
    return arguments


def start(arguments: argparse.Namespace) -> World:
    """Set the number of threads, make the work folder and load the world.

    Raises:
        SystemExit: if its pictures or recordings are missing; the message has the command that installs them.
    """
    for folder in (arguments.stamps, arguments.gcompris):
        if not folder.is_dir():
            raise SystemExit(f"no {folder}: apt-get install tuxpaint-stamps-default gcompris-qt-data")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    world = World(arguments.stamps, arguments.gcompris)
    print(f"{len(KINDS)} kinds, {len(SOUNDING)} of them sound", flush=True)
    return world


def save_checkpoint(path: Path, **state: Any) -> None:
    """Write a checkpoint atomically: an interruption leaves the old one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(
    checkpoint: Path,
    modules: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[int], Tensor],
    *,
    warmup: int,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Train with warm-up and cosine decay, or resume from the checkpoint. A loss depends on its step alone.

    Args:
        checkpoint: file, written every two minutes and at the end.
        modules: modules to train, by name.
        optimiser: optimiser of their parameters, with the peak learning rates.
        steps: number of steps.
        loss: computes the loss of a step; the step's number seeds its examples.
        warmup: steps until the peak learning rate is reached.
        begin: called first if there is no checkpoint.
    """
    step, spent = 0, 0.0
    rates = [group["lr"] for group in optimiser.param_groups]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
    else:
        begin()
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    began, saved, recent = time.monotonic() - spent, time.monotonic(), []
    while step < steps:
        share = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step, spent = step + 1, time.monotonic() - began
        recent.append(value.item())
        if step % 50 == 0:
            print(f"step {step} of {steps}, {spent / 60:.1f} min: {np.mean(recent[-50:]):.3f}", flush=True)
        if time.monotonic() - saved > SAVED_EVERY or step == steps:
            saved = time.monotonic()
            states = {name: module.state_dict() for name, module in modules.items()}
            save_checkpoint(checkpoint, **states, optimiser=optimiser.state_dict(), step=step, spent=spent)
    print(f"{checkpoint.stem}: {steps} steps in {spent / 60:.1f} min", flush=True)
