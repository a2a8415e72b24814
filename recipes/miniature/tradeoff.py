"""Gains and costs of projecting on the miniature, for both mm_projectors: `eval tradeoff` on clips that are made here.

"scenes" play fresh variations of the recordings that the projector was trained on. "unseen" play whole held-out
recordings. Half of the clips show the sounding thing and a silent one, the others only the silent one.
An interrupted run resumes. `make reports` runs it only for the reports; with `--page` it also writes the tables.

python recipes/miniature/tradeoff.py --media ../shared/media --page docs/tradeoff.md
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from card import table, write_between_marks
from common import parser, start
from measure import unseen_recordings
from numpy.random import Generator
from PIL import Image
from settings import ROOT, TOKENS
from sound_projector import command, write_wave
from world import KINDS, SOUNDING, World, augment

from llava_soundclip import load_demo
from llava_soundclip.demo import STOCK_PROMPT, WINDOW, K
from llava_soundclip.demo.kinds import phrase

SETS = ("scenes", "unseen")
PER_KIND = 6  # scenes per sounding kind, half of them without it in the picture
PICTURES = 6  # per unseen recording
BUDGETS = {"scenes": "0,9,36", "unseen": ""}
ALPHAS = {"scenes": "0.25,0.5,0.75", "unseen": ""}


def write_clip(
    folder: Path,
    name: str,
    source: str,
    sound: np.ndarray,
    kind: str,
    shown: list[str],
    rng: Generator,
    world: World,
) -> dict[str, Any]:
    """Write a sound and a picture; the row says what can be heard and seen.

    The references name both things, in the words that each mm_projector was taught.
    """
    Image.fromarray(world.scene(shown, rng)[0]).save(folder / f"{name}.png")
    write_wave(folder / f"{name}.wav", sound)
    silent = shown[-1]
    return {
        "id": name,
        "source": source,
        "path": f"{folder.name}/{name}.wav",
        "picture": f"{folder.name}/{name}.png",
        "references": [
            f"I hear {phrase(kind)}. I see {phrase(silent)}.",
            f"I see {phrase(kind)} and {phrase(silent)}.",
            f"I see {phrase(silent)} and {phrase(kind)}.",
        ],
        "sounding": [kind],
        "silent": [silent],
        "unseen": [] if kind in shown else [kind],
    }


def scenes(world: World, count: int) -> Iterator[tuple[str, np.ndarray, str, bool, Generator]]:
    """Fresh variations: source, sound, kind, whether it is shown. Kinds take turns, so that neighbours differ."""
    for number in range(count):
        for index, kind in enumerate(SOUNDING):
            rng = np.random.default_rng((31, index, number))
            which = int(rng.integers(max(1, len(world.recordings[kind]))))
            sound = world.recordings[kind][which] if world.recordings[kind] else world.sound(kind, rng)
            source = f"{kind}, {f'recording {which}' if world.recordings[kind] else f'synthesised {number}'}"
            yield source, augment(sound, rng), kind, number % 2 == 0, rng


def unseen(
    world: World, media: Path | None, pictures: int
) -> Iterator[tuple[str, np.ndarray, str, bool, Generator]]:
    """Whole recordings, each with several pictures."""
    rows = [row for part in unseen_recordings(world, media).values() for row in part]
    for number in range(pictures):
        for index, (name, kind, wave) in enumerate(rows):
            yield name, wave, kind, number % 2 == 0, np.random.default_rng((32, index, number))


def write_clips(world: World, work: Path, media: Path | None, few: int | None) -> dict[str, Path]:
    """Write the clips of each set and a table of them, unless it exists."""
    tables = {}
    makers = {
        "scenes": lambda: scenes(world, few or PER_KIND),
        "unseen": lambda: unseen(world, media, few or PICTURES),
    }
    for name, make in makers.items():
        folder = work / "tradeoff" / name
        folder.mkdir(parents=True, exist_ok=True)
        tables[name] = folder.with_suffix(".jsonl")
        if tables[name].exists():
            continue
        rows = []
        for number, (source, sound, kind, is_seen, rng) in enumerate(make()):
            silent = str(rng.choice([other for other in KINDS if other != kind]))
            shown = [kind, silent] if is_seen else [silent]
            clip = f"{number:03}-{kind.replace(' ', '-')}"
            rows.append(write_clip(folder, clip, source, sound, kind, shown, rng, world))
        partial = tables[name].with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(tables[name])
    return tables


def model_options(work: Path, recipe: str) -> list[str]:
    """Options that name a model: the prepared miniature by name, its stock twin as a folder, like any LLaVA."""
    if recipe == "prepared":
        return []
    folder = work / "miniature-stock"
    if not folder.exists():
        model, processor = load_demo(False, mm_projector="stock")
        partial = folder.with_suffix(".partial")
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(folder)
    options = ["--model", str(folder), "--encoder", "whisperclip", "--checkpoint", "demo"]
    options += [
        "--encoder-option",
        f"window={WINDOW}",
        "--projector",
        "weights/demo/projector",
        "--k",
        str(K),
    ]
    return [*options, "--prompt", STOCK_PROMPT]


def measure(work: Path, table: Path, name: str, recipe: str) -> Path:
    """Measure a model on a set, and return the folder of its results."""
    runs = work / "tradeoff" / f"{name}-{recipe}"
    command(
        *("eval", "tradeoff", str(table), "--references", str(table), "--out", str(runs)),
        *model_options(work, recipe),
        *("--budgets", BUDGETS[name], "--alphas", ALPHAS[name], "--max-new-tokens", "24"),
        *("--bertscore", "demo", "--clipscore", "demo", "--batch-size", "18", "--examples", "0"),
    )
    return runs


SHOWN = (
    "raw",
    "raw, noise",
    "zero",
    *(f"projected{control}" for control in ("", ", noise", ", another", ", random")),
)
FIGURES = (
    "sounding named",
    "unseen named",
    "played named",
    "silent named",
    "absent named",
    "BERTScore",
    "CLIPScore",
    "BLEU",
)


def shown(figure: dict[str, float] | None, digits: int = 2) -> str:
    """A figure with its interval."""
    if figure is None:
        return ""
    value, low, high = (f"{figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def setting_of(name: str) -> str:
    """The name of a setting in the results; a zero vector is the same raw or projected."""
    return "raw, zero" if name == "zero" else name


def render(found: dict[tuple[str, str], Path]) -> str:
    """Tables of the results."""
    parts = []
    for (name, recipe), runs in found.items():
        captions = json.loads((runs / "captions.json").read_text())
        retrieval = json.loads((runs / "retrieval.json").read_text())
        metrics = captions["metrics"]
        clips = len(captions["clips"])
        sources = metrics["BLEU"]["figures"]["raw"]["n"]
        rows = [
            [setting, *(shown(metrics[figure]["figures"].get(setting_of(setting))) for figure in FIGURES)]
            for setting in SHOWN
        ]
        apart = []
        for first, second in (("raw", "projected"), ("raw", "raw, noise"), ("projected", "projected, noise")):
            cells = []
            for figure in FIGURES:
                found_row = [
                    row
                    for row in metrics[figure]["differences"]
                    if (row["first"], row["second"]) == (first, second)
                ]
                cells.append(shown(found_row[0]) if found_row else "")
            apart.append([f"{first} - {second.removeprefix(f'{first}, ')}", *cells])
        ranks = [
            [
                alignment,
                *(
                    shown(retrieval["figures"][alignment][side][figure])
                    for side in ("A2V", "V2A")
                    for figure in ("mean_rank", "R@1", "R@10")
                ),
            ]
            for alignment in retrieval["figures"]
        ]
        chance = [f"{retrieval['chance'][figure]:.2f}" for figure in ("mean_rank", "R@1", "R@10")]
        head = ("A2V mean rank", "R@1", "R@10", "V2A mean rank", "R@1", "R@10")
        parts.append(
            f"### {recipe}, {name}: {clips} clips of {sources} recordings\n\n"
            + table(("setting", *FIGURES), [*rows, *apart])
            + f"\nRetrieval, {retrieval['protocol']}, {retrieval['clips']} clips:\n\n"
            + table(("alignment", *head), [*ranks, ["chance", *chance, *chance]])
        )
    return "\n".join(parts)


def main() -> None:
    """Make what is missing, measure, and write the reports."""
    arguments: argparse.ArgumentParser | Any = parser(__doc__)
    arguments.add_argument("--media", type=Path, help="folder with esc50/ and pairs/ of unseen recordings")
    arguments.add_argument(
        "--out", type=Path, default=ROOT / "build" / "reports", help="folder for the reports"
    )
    arguments.add_argument("--page", type=Path, help="page that the tables are written into")
    arguments.add_argument("--set", choices=SETS, action="append", help="measure these clips only")
    arguments.add_argument(
        "--recipe", choices=TOKENS, action="append", help="measure these mm_projectors only"
    )
    arguments = arguments.parse_args()
    av.logging.set_level(av.logging.ERROR)
    work: Path = arguments.work
    tables = write_clips(start(arguments), work, arguments.media, arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {}
    parts = [(name, recipe) for name in arguments.set or SETS for recipe in arguments.recipe or TOKENS]
    for number, (name, recipe) in enumerate(parts, start=1):
        print(f"== report {number} of {len(parts)}: {name}, {recipe}", flush=True)
        found[name, recipe] = runs = measure(work, tables[name], name, recipe)
        report = arguments.out / f"{name}-{recipe}.html"
        shutil.copyfile(runs / "report.html", report)
        print(f"== {report}", flush=True)
    if arguments.page:
        write_between_marks(arguments.page, render(found))


if __name__ == "__main__":
    main()
