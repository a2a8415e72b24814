"""Stage 2: train the SoundCLIP projector with the library's own commands, as its users do.

Writes clips and a table of them: each clip is a varied recording, or a rough imitation, with a picture of its kind.
Then `llava-soundclip features` makes their features, and `llava-soundclip train` trains. All three steps resume.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import torch
from common import parser, start, write_tower_folder
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.nn import functional
from voices import imitate
from world import RATE, SOUNDING, World, augment

from llava_soundclip.alignment.projector import Projector
from llava_soundclip.demo import WINDOW
from llava_soundclip.demo.parts import WHISPER, find_part
from llava_soundclip.features import FeatureFolder

CLIPS = 240  # per kind
HELD_OUT = 40  # per held-out recording
IMITATED = 0.35  # share of imitations, for kinds that have recordings
# Differences to the paper: a small data set needs a higher learning rate, smaller batches and more dropout. There are
# few recordings, so the seed is one that holds out only imitations for validation.
RECIPE = {
    "learning-rate": 5e-4,
    "epochs": 20,
    "batch-size": 64,
    "dropout": 0.4,
    "validation": 0.02,
    "seed": 2,
}


def write_wave(path: Path, sound: np.ndarray) -> None:
    """Write a float32 sound (samples,) at `RATE` as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def write_clip(world: World, folder: Path, name: str, sound: np.ndarray, kind: str, rng: Generator) -> None:
    """Write a varied sound, and a picture that shows only its kind."""
    Image.fromarray(world.scene([kind], rng)[0]).save(folder / f"{name}.png")
    write_wave(folder / f"{name}.wav", augment(sound, rng))


def write_clips(world: World, work: Path, clips: int = CLIPS, held_out: int = HELD_OUT) -> tuple[Path, Path]:
    """Write the clips for training and those of held-out recordings, unless they exist.

    Every recording and every imitation is a source, so that training and validation share none.

    Returns:
        The two tables, with the columns id, source, path and picture.
    """
    tables = work / "clips.jsonl", work / "held-out.jsonl"
    folder = work / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    if all(table.exists() for table in tables):
        return tables
    rows: tuple[list[dict[str, str]], list[dict[str, str]]] = [], []

    def add(held: bool, kind: str, source: str, sound: np.ndarray, number: int, rng: Generator) -> None:
        name = f"{source}-{number:03}".replace(" ", "-")
        write_clip(world, folder, name, sound, kind, rng)
        row = {"id": name, "source": source, "path": f"clips/{name}.wav", "picture": f"clips/{name}.png"}
        rows[held].append(row)

    for index, kind in enumerate(SOUNDING):
        rng = np.random.default_rng((4, index))
        recordings = world.recordings[kind]
        for number in range(clips):
            if not recordings or rng.random() < IMITATED:
                sound = imitate(kind, rng.uniform(1.5, 5), rng)
                add(False, kind, f"{kind}, imitation {number}", sound, number, rng)
            else:
                which = number % len(recordings)
                add(False, kind, f"{kind}, recording {which}", recordings[which], number, rng)
        for which, sound in enumerate(world.held_out[kind]):
            for number in range(held_out):
                add(True, kind, f"{kind}, held out {which}", sound, number, rng)
    for table, lines in zip(tables, rows, strict=True):
        partial = table.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(table)
    return tables


def command(*arguments: str) -> None:
    """Run one of the library's commands."""
    print("llava-soundclip", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "llava_soundclip", *arguments], check=True)


def make_features(world: World, arguments: argparse.Namespace) -> tuple[FeatureFolder, FeatureFolder]:
    """Features of the training clips and of the held-out ones, made unless they exist."""
    work: Path = arguments.work
    few = {"clips": 2 * arguments.steps, "held_out": arguments.steps} if arguments.steps else {}
    folders = work / "features", work / "features-held-out"
    tower = write_tower_folder(work)
    for table, folder in zip(write_clips(world, work, **few), folders, strict=True):
        command(
            *("features", str(table), "--encoder", "whisperclip", "--encoder-option", f"window={WINDOW}"),
            *("--checkpoint", str(find_part(WHISPER, hub=False).parent), "--tower", str(tower)),
            *("--out", str(folder)),
        )
    known, unseen = map(FeatureFolder, folders)
    return known, unseen


def kinds_of(features: FeatureFolder) -> list[str]:
    """The kind of each row."""
    return [source.rpartition(", ")[0] for source in features.sources]


def mean_cls(features: FeatureFolder) -> Tensor:
    """The mean CLS of each kind's pictures, normalised: (len(SOUNDING), D)."""
    cls, kinds = features.rows(torch.arange(len(features)))[1], kinds_of(features)
    means = [cls[[name == kind for name in kinds]].mean(0) for kind in SOUNDING]
    return functional.normalize(torch.stack(means), dim=-1)


def nearest(f_a: Tensor, means: Tensor) -> list[str]:
    """The kind whose mean CLS is nearest to each vector (n, D)."""
    return [SOUNDING[index] for index in (functional.normalize(f_a, dim=-1) @ means.T).argmax(1)]


def main() -> None:
    """Make what is missing, train, and write the folder `projector`."""
    arguments = parser(__doc__).parse_args()
    work: Path = arguments.work
    known, unseen = make_features(start(arguments), arguments)
    trained = work / "projector-float32"
    if not (trained / "metrics.jsonl").exists():
        # A trial has few clips: a larger share of them is validated on, since the loss needs two pairs.
        recipe = RECIPE | ({"epochs": 1, "validation": 0.2} if arguments.steps else {})
        options = [text for name, value in recipe.items() for text in (f"--{name}", str(value))]
        command("train", str(work / "features"), "--out", str(trained), *options)
    projector = Projector.from_pretrained(trained)
    with torch.no_grad():
        f_a = projector(unseen.rows(torch.arange(len(unseen)))[0].mean(1))
    kinds, told = kinds_of(unseen), nearest(f_a, mean_cls(known))
    for kind in sorted(set(kinds)):
        found = [name == kind for name, truth in zip(told, kinds, strict=True) if truth == kind]
        print(f"held out, {kind}: {sum(found)} of {len(found)} variations recognised", flush=True)
    projector.half().save_pretrained(work / "projector")
    for name in ("README.md", "metrics.jsonl"):  # the projector's own card and its training log
        shutil.copyfile(trained / name, work / "projector" / name)


if __name__ == "__main__":
    main()
