"""Gains and costs of projecting on the miniature, for both mm_projectors: `eval tradeoff` on clips that are made here.

"scenes" play fresh variations of the recordings that the projector was trained on. "unseen" play whole held-out
recordings. Half of the clips show the sounding thing and a silent one, the others only the silent one.
An interrupted run resumes. `make reports` runs it only for the reports; with `--page` it also writes
`figures/tradeoff.json`, and from it the tables.

python recipes/miniature/tradeoff.py --media ../shared/media --page docs/tradeoff.md
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from card import tradeoff, write_between_marks
from common import parser, start
from measure import unseen_recordings
from numpy.random import Generator
from PIL import Image
from settings import ROOT, TOKENS, TRADEOFF
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


def triple(figure: dict[str, float]) -> list[float]:
    """A figure and the ends of its interval, to four significant digits."""
    return [float(f"{figure[key]:.4g}") for key in ("value", "low", "high")]


def collected(runs: Path) -> dict[str, Any]:
    """The figures of a run's files, for `figures/tradeoff.json`."""
    captions = json.loads((runs / "captions.json").read_text())
    retrieval = json.loads((runs / "retrieval.json").read_text())
    metrics = captions["metrics"]
    figures: dict[str, dict[str, list[float]]] = {}
    differences: dict[str, dict[str, list[float]]] = {}
    for metric, part in metrics.items():
        for setting, figure in part["figures"].items():
            figures.setdefault(setting, {})[metric] = triple(figure)
        for row in part["differences"]:
            differences.setdefault(f"{row['first']} - {row['second']}", {})[metric] = triple(row)
    ranks = {"mean_rank": "mean rank", "R@1": "R@1", "R@3": "R@3", "R@10": "R@10"}
    found: dict[str, Any] = {
        "clips": len(captions["clips"]),
        "recordings": metrics["BLEU"]["figures"]["raw"]["n"],
        "captions": figures,
        "differences": differences,
        "retrieval": {
            "clips": retrieval["clips"],
            "protocol": retrieval["protocol"],
            "figures": {
                alignment: {
                    side: {called: triple(part[name]) for name, called in ranks.items()}
                    for side, part in sides.items()
                }
                for alignment, sides in retrieval["figures"].items()
            },
            "chance": {called: round(retrieval["chance"][name], 4) for name, called in ranks.items()},
        },
    }
    path = runs / "information.json"
    if path.exists():
        information = json.loads(path.read_text())
        shared = information["shared"]
        found["information"] = {
            "at most": round(shared["raw"]["cosine"]["at_most"], 2),
            **{
                critic: {name: triple(shared[name][critic]) for name in ("raw", "projected", "gain")}
                for critic in ("cosine", "linear")
            },
            "probes": {
                label: {
                    "chance": part["chance"],
                    **{name: triple(part[name]) for name in ("raw", "projected", "picture", "lost")},
                }
                for label, part in information["unique"].items()
            },
        }
    return found


def write_figures(found: dict[str, Any]) -> None:
    """Write the figures as JSON, with an interval per line; sets that weren't measured keep theirs."""
    known = json.loads(TRADEOFF.read_text()) if TRADEOFF.exists() else {}
    text = json.dumps({**known, **found}, indent=1, ensure_ascii=False, allow_nan=False)
    TRADEOFF.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2 \3]", text) + "\n")


def main() -> None:
    """Make what is missing, measure, and write the reports."""
    arguments: argparse.ArgumentParser | Any = parser(__doc__)
    arguments.add_argument("--media", type=Path, help="folder with esc50/ and pairs/ of unseen recordings")
    arguments.add_argument(
        "--out", type=Path, default=ROOT / "build" / "reports", help="folder for the reports"
    )
    arguments.add_argument(
        "--page",
        type=Path,
        help="page to write the tables into, from figures/tradeoff.json, which is written before",
    )
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
        write_figures({f"{recipe}, {name}": collected(runs) for (name, recipe), runs in found.items()})
        write_between_marks(arguments.page, tradeoff(json.loads(TRADEOFF.read_text())))


if __name__ == "__main__":
    main()
