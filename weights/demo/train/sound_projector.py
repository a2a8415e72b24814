"""Stage 3: train the SoundCLIP projector, from Whisper's vector of a sound to the CLS of its picture.

The loss is the paper's (F.4): InfoNCE in both directions on cosines, and the distance of the means and
deviations of the batch, summed over dimensions.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from common import cls_tokens, load_tower, parser, save_checkpoint, start
from torch import Tensor
from torch.nn import functional
from world import RATE, SOUNDING, World, augment

from llava_soundclip.demo.assemble import WHISPER_FILE, WIDTH, make_config, package_file
from llava_soundclip.encoders import AudioEncoder, load_encoder
from llava_soundclip.hosts.base import clip_fingerprint
from llava_soundclip.projector import Projector

TEMPERATURE = 0.07
MOMENTS = 0.02
STEPS = 1200
LEARNING_RATE = 5e-4
PICTURES = 100  # of each kind
HELD_OUT = 8  # augmentations of each kind that are not trained on


def hear(world: World, encoder: AudioEncoder, count: int, path: str, work: Path) -> dict[str, Tensor]:
    """Embed `count` augmented recordings of each sounding kind: a kind's vectors are (count, dim).

    What is done is kept in a checkpoint, round by round.
    """
    checkpoint = work / path
    vectors: dict[str, list[Tensor]] = (
        torch.load(checkpoint) if checkpoint.exists() else {k: [] for k in SOUNDING}
    )
    began = time.monotonic()
    while (done := len(vectors[SOUNDING[-1]])) < count:
        rng = np.random.default_rng((4 if path == "sounds.pt" else 5, done))
        waves = [augment(world.sound(kind, rng), rng) for kind in SOUNDING]
        for kind, vector in zip(SOUNDING, encoder.embed(waves, RATE), strict=True):
            vectors[kind].append(vector)
        if done % 10 == 9:
            save_checkpoint(checkpoint, **vectors)
            print(f"heard {done + 1} of {count}, {(time.monotonic() - began) / 60:.1f} min", flush=True)
    save_checkpoint(checkpoint, **vectors)
    return {kind: torch.stack(rows[:count]) for kind, rows in vectors.items()}


def loss(f_a: Tensor, c: Tensor) -> Tensor:
    """The paper's loss for a batch of one sound and one picture of each kind: f_a and c are (B, WIDTH)."""
    logits = functional.normalize(f_a, dim=-1) @ functional.normalize(c, dim=-1).T / TEMPERATURE
    truth = torch.arange(len(f_a))
    contrast = (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
    means = (f_a.mean(0) - c.mean(0)).square().sum()
    deviations = (f_a.std(0) - c.std(0)).square().sum()
    return contrast + MOMENTS * (means + deviations)


@torch.no_grad()
def check(projector: Projector, heard: dict[str, Tensor], looked: dict[str, Tensor]) -> None:
    """Print how often the mean CLS of the right kind is the nearest, on held-out augmentations."""
    kinds = torch.stack([functional.normalize(looked[kind].mean(0), dim=-1) for kind in SOUNDING])
    right = {}
    for index, kind in enumerate(SOUNDING):
        f_a = functional.normalize(projector(heard[kind]), dim=-1)
        right[kind] = (f_a @ kinds.T).argmax(1).eq(index).float().mean().item()
    norms = [torch.cat([projector(heard[kind]) for kind in SOUNDING]), torch.cat(list(looked.values()))]
    print(
        f"right kind nearest: {np.mean(list(right.values())):.3f} (n = {HELD_OUT * len(SOUNDING)}); norms "
        f"{norms[0].norm(dim=-1).mean():.1f} of sounds, {norms[1].norm(dim=-1).mean():.1f} of CLS",
        flush=True,
    )
    print(
        "weak: " + ", ".join(f"{kind} {share:.2f}" for kind, share in right.items() if share < 0.9),
        flush=True,
    )


def main() -> None:
    """Embed what is not embedded yet, train, write the folder `projector`."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=40, help="augmented recordings of each kind")
    arguments.add_argument("--only-hear", action="store_true", help="embed the recordings and stop")
    arguments = arguments.parse_args()
    world = start(arguments)
    encoder = load_encoder("whisperclip", checkpoint=package_file(*WHISPER_FILE).parent)
    heard = hear(world, encoder, arguments.count, "sounds.pt", arguments.work)
    held_out = hear(world, encoder, HELD_OUT, "sounds-held-out.pt", arguments.work)
    if arguments.only_hear:
        return
    looked = cls_tokens(world, load_tower(arguments.work), PICTURES, seed=6)
    torch.manual_seed(0)
    projector = Projector(
        encoder.dim,
        WIDTH,
        tower=clip_fingerprint(make_config({}).vision_config),
        tower_layer=-2,
        loss="infonce+moments",
        **encoder.signature(),
    )
    optimiser = torch.optim.AdamW(projector.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    spread = torch.cat(list(heard.values())).std(0)
    rng = np.random.default_rng(7)
    for step in range(STEPS):
        z = torch.stack([rows[rng.integers(len(rows))] for rows in heard.values()])
        c = torch.stack([rows[rng.integers(len(rows))] for rows in looked.values()])
        z = z + 0.1 * spread * torch.from_numpy(rng.normal(0, 1, z.shape)).float()
        value = loss(projector(z), c)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 199:
            print(f"step {step + 1}: {value:.3f}", flush=True)
    check(projector.eval(), held_out, looked)
    projector.half().save_pretrained(arguments.work / "projector")


if __name__ == "__main__":
    main()
