"""Stage 2: train the SoundCLIP projector, from Whisper's vector of a sound to the CLS of its picture.

The loss is the paper's (F.4): InfoNCE in both directions on cosines, and the distance of the means and
deviations of the batch, summed over dimensions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import WIDTH, cls_tokens, load_tower, parser, save_checkpoint, start
from torch import Tensor
from torch.nn import functional
from voices import imitate
from world import RATE, SOUNDING, World, augment

from llava_soundclip.demo import WINDOW
from llava_soundclip.demo.assemble import WHISPER_FILE, make_config, package_file
from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.whisper import WhisperCLIPEncoder
from llava_soundclip.hosts.base import clip_fingerprint
from llava_soundclip.projector import Projector

TEMPERATURE = 0.07
MOMENTS = 0.02
STEPS = 1500
LEARNING_RATE = 5e-4
PICTURES = 100  # of each kind
VARIATIONS = 60  # of each recording, and imitations of each kind
IMITATED = 0.35  # of the sounds of a kind that has recordings
ROUND = 4  # variations of everything between two checkpoints


@dataclass
class Heard:
    """Vectors of one kind's sounds, every block of Whisper for itself: (variations, blocks, dim) each."""

    recordings: list[Tensor]
    held_out: list[Tensor]
    imitations: Tensor


def load_whisper() -> WhisperCLIPEncoder:
    """Load the demo's encoder."""
    return load_encoder("whisperclip", checkpoint=package_file(*WHISPER_FILE).parent, window=WINDOW)


def hear(world: World, encoder: WhisperCLIPEncoder, work: Path, variations: int) -> dict[str, Heard]:
    """Embed variations of every recording, the held-out ones too, and imitations; go on from the checkpoint."""
    checkpoint = work / "sounds.pt"
    rows: list[Tensor] = (
        list(torch.load(checkpoint, weights_only=True)["rows"]) if checkpoint.exists() else []
    )
    began = time.monotonic()
    while len(rows) < variations:
        rng = np.random.default_rng((4, len(rows)))
        waves = []
        for kind in SOUNDING:
            known = world.recordings[kind] + world.held_out[kind] + [imitate(kind, rng.uniform(1.5, 5), rng)]
            waves += [augment(wave, rng) for wave in known]
        rows.append(
            torch.cat([encoder.layer_means(waves[at : at + 8], RATE) for at in range(0, len(waves), 8)])
        )
        if len(rows) % ROUND == 0:
            save_checkpoint(checkpoint, rows=torch.stack(rows))
            print(f"heard {len(rows)} of {variations}, {(time.monotonic() - began) / 60:.1f} min", flush=True)
    vectors, heard = torch.stack(rows[:variations], 1), {}
    for kind in SOUNDING:
        counts = [len(world.recordings[kind]), len(world.held_out[kind]), 1]
        recordings, held_out, imitations = vectors[: sum(counts)].split(counts)
        vectors = vectors[sum(counts) :]
        heard[kind] = Heard(list(recordings), list(held_out), imitations[0])
    return heard


def loss(f_a: Tensor, c: Tensor) -> Tensor:
    """The paper's loss for a batch of one sound and one picture of each kind: f_a and c are (B, WIDTH)."""
    logits = functional.normalize(f_a, dim=-1) @ functional.normalize(c, dim=-1).T / TEMPERATURE
    truth = torch.arange(len(f_a))
    contrast = (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
    means = (f_a.mean(0) - c.mean(0)).square().sum()
    deviations = (f_a.std(0) - c.std(0)).square().sum()
    return contrast + MOMENTS * (means + deviations)


def fit(
    projector: Projector, heard: dict[str, Heard], looked: dict[str, Tensor], steps: int, seed: int = 7
) -> Projector:
    """Train a projector.

    Args:
        projector: on vectors of the blocks' mean.
        heard: what each kind sounds like; `held_out` is not read.
        looked: CLS tokens of each kind, (PICTURES, WIDTH).
        steps: of one sound and one picture of each kind.
        seed: of the choices.
    """
    optimiser = torch.optim.AdamW(projector.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    recordings = {kind: [rows.mean(1) for rows in sounds.recordings] for kind, sounds in heard.items()}
    imitations = {kind: sounds.imitations.mean(1) for kind, sounds in heard.items()}
    spread = torch.cat([rows for kind in heard for rows in (*recordings[kind], imitations[kind])]).std(0)
    rng = np.random.default_rng(seed)

    def sound(kind: str) -> Tensor:
        pool = recordings[kind]
        rows = imitations[kind] if not pool or rng.random() < IMITATED else pool[rng.integers(len(pool))]
        return rows[rng.integers(len(rows))]

    projector.train()
    for _ in range(steps):
        z = torch.stack([sound(kind) for kind in heard])
        z = z + 0.1 * spread * torch.from_numpy(rng.normal(0, 1, z.shape)).float()
        c = torch.stack([looked[kind][rng.integers(len(looked[kind]))] for kind in heard])
        value = loss(projector(z), c)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    print(f"loss after {steps} steps: {value:.3f}", flush=True)
    return projector.eval()


@torch.no_grad()
def nearest(projector: Projector, vectors: Tensor, looked: dict[str, Tensor]) -> list[str]:
    """The kind whose mean CLS is nearest to each sound: vectors are (n, dim)."""
    kinds = torch.stack([functional.normalize(rows.mean(0), dim=-1) for rows in looked.values()])
    found = (functional.normalize(projector(vectors), dim=-1) @ kinds.T).argmax(1)
    return [list(looked)[index] for index in found]


def main() -> None:
    """Embed what is not embedded yet, train, write the folder `projector`."""
    arguments = parser(__doc__).parse_args()
    world = start(arguments)
    encoder = load_whisper()
    heard = hear(world, encoder, arguments.work, min(VARIATIONS, arguments.steps or VARIATIONS))
    looked = cls_tokens(world, load_tower(arguments.work), PICTURES, seed=6)
    torch.manual_seed(0)
    projector = Projector(
        encoder.dim,
        WIDTH,
        tower=clip_fingerprint(make_config({}).vision_config),
        tower_layer=-2,
        loss="infonce+moments",
        **Projector.labels(encoder.signature()),
    )
    fit(projector, heard, looked, arguments.steps or STEPS)
    for kind, sounds in heard.items():
        for rows in sounds.held_out:
            told = nearest(projector, rows.mean(1), looked)
            print(f"held out, {kind}: {told.count(kind)} of {len(told)} variations told", flush=True)
    with torch.no_grad():
        norms = torch.cat([projector(sounds.imitations.mean(1)) for sounds in heard.values()]).norm(dim=-1)
    cls_norms = torch.cat(list(looked.values())).norm(dim=-1)
    print(f"norms: {norms.mean():.1f} of sounds, {cls_norms.mean():.1f} of CLS", flush=True)
    projector.half().save_pretrained(arguments.work / "projector")


if __name__ == "__main__":
    main()
