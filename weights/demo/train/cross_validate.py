"""Leave every recording out in turn: is its kind told, from Whisper's last block or from the average of all?

The SoundCLIP projector is trained again for each fold, on the vectors and the tower that the stages left in `--work`.
Adds "cross-validation" to `measured.json` and the card.

python weights/demo/train/cross_validate.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from card import write_card
from common import WEIGHTS, WIDTH, cls_tokens, load_tower, parser, start
from measure import share
from sound_projector import PICTURES, STEPS, VARIATIONS, fit, hear, load_whisper, nearest
from world import RATE

from llava_soundclip.projector import Projector

FOLDS = 3
FUSIONS = {"average of all": slice(None), "the last alone": slice(-1, None)}


def main() -> None:
    """Train the folds and write what they tell."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=WEIGHTS / "measured.json")
    arguments = arguments.parse_args()
    world = start(arguments)
    encoder = load_whisper()
    heard = hear(world, encoder, arguments.work, VARIATIONS)
    looked = cls_tokens(world, load_tower(arguments.work), PICTURES, seed=6)
    plain = {
        kind: [encoder.layer_means([wave], RATE)[0] for wave in world.recordings[kind] + world.held_out[kind]]
        for kind in heard
    }
    figures: dict[str, Any] = {}
    for name, blocks in FUSIONS.items():
        whole, varied = [], []
        for fold in range(FOLDS):
            left_out = {kind: fold % len(waves) for kind, waves in plain.items() if len(waves) > 1}
            known = {}
            for kind, sounds in heard.items():
                every = [rows[:, blocks] for rows in sounds.recordings + sounds.held_out]
                kept = [rows for index, rows in enumerate(every) if index != left_out.get(kind)]
                known[kind] = replace(sounds, recordings=kept, imitations=sounds.imitations[:, blocks])
            torch.manual_seed(fold)
            projector = fit(Projector(encoder.dim, WIDTH), known, looked, arguments.steps or STEPS, seed=fold)
            for kind, index in left_out.items():
                if fold >= len(plain[kind]):
                    continue  # it was left out before
                rows = (heard[kind].recordings + heard[kind].held_out)[index][:, blocks].mean(1)
                whole += [nearest(projector, plain[kind][index][None, blocks].mean(1), looked) == [kind]]
                varied += [found == kind for found in nearest(projector, rows, looked)]
        figures[name] = {"recordings": share(whole), "variations": share(varied)}
        print(name, figures[name], flush=True)
    measured = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    measured["cross-validation"] = figures
    arguments.out.write_text(json.dumps(measured, indent=1) + "\n")
    write_card(arguments.out.with_name("README.md"), measured)


if __name__ == "__main__":
    main()
