"""Measure the miniature on fresh scenes, held-out augmentations and recordings that were never trained on.

Everything goes through the library as a user would call it. Writes `measured.json` and
the table of the card beside the weights.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import WEIGHTS, draw_kinds, parser, start
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from world import KINDS, RATE, SOUNDING, World, augment, decode, phrase

from llava_soundclip.demo import PROMPT, K, load_demo
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_scene, synthesise
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.patching import SoundCLIP

BATCH = 16
KS = (0, 9, 18, 36)
# Recordings of the miniature's kinds that no stage has seen; the number is ESC-50's class.
ESC50 = {0: "dog", 4: "frog", 5: "cat", 14: "bird", 37: "alarm clock", 42: "fire truck", 46: "bell"}
PAIRS = {"dog_audio.wav": "dog", "bird_audio.wav": "bird", "car_audio.wav": "car"}
PICTURES = 6  # pictures that each unseen recording is played with


MARK = "<!-- measured -->"


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | 95 % | n |", "|---|---|---|---|"]
    for name, figure in figures.items():
        value = next(iter(figure.values()))
        low_high = "{:.2f} to {:.2f}".format(*figure["interval"]) if "interval" in figure else ""
        lines.append(f"| {name} | {value:.2f} | {low_high} | {figure['n']} |")
    return "\n".join(lines) + "\n"


def clause(caption: str, verb: str) -> str:
    """What follows "I hear" or "I see" in a caption; empty if it doesn't say so."""
    return " ".join(re.findall(rf"I {verb} ([^.]*)", caption))


def names(text: str, kind: str) -> bool:
    """Whether a text names a kind, as a whole word."""
    return re.search(rf"\b{kind}\b", text) is not None


def share(hits: list[bool]) -> dict[str, Any]:
    """A share with Wilson's interval of 95 %."""
    n, z = len(hits), 1.96
    p = sum(hits) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return {"share": round(p, 3), "n": n, "interval": [round(max(0, low), 3), round(min(1, high), 3)]}


def remember(encoder: AudioEncoder) -> None:
    """Let an encoder embed each sound once: the same sounds are played with every setting."""
    known: dict[bytes, Tensor] = {}
    embed = encoder.embed

    def embed_new(waveforms: Sequence[np.ndarray], sampling_rate: int) -> Tensor:
        keys = [np.asarray(wave).tobytes() for wave in waveforms]
        for key, wave in zip(keys, waveforms, strict=True):
            if key not in known:
                known[key] = embed([wave], sampling_rate)[0]
        return torch.stack([known[key] for key in keys])

    encoder.embed = embed_new  # type: ignore[method-assign]


def caption(soundclip: SoundCLIP, sounds: list[np.ndarray], pictures: list[Image.Image]) -> list[str]:
    """Caption sounds at `RATE` with pictures, greedily."""
    captions: list[str] = []
    for at in range(0, len(sounds), BATCH):
        captions += soundclip.caption(
            sounds[at : at + BATCH],
            picture=pictures[at : at + BATCH],
            sampling_rate=RATE,
            max_new_tokens=24,
            do_sample=False,
        )
    return captions


def stock_captions(soundclip: SoundCLIP, pictures: list[Image.Image]) -> list[str]:
    """Caption pictures without a sound, with the same question."""
    processor = soundclip.processor
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    captions = []
    for at in range(0, len(pictures), BATCH):
        batch = pictures[at : at + BATCH]
        inputs = processor(images=batch, text=[text] * len(batch), return_tensors="pt", padding=True)
        output = soundclip.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        captions += processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return captions


def picture(world: World, kinds: list[str], rng: Generator) -> Image.Image:
    """Make a scene as a picture."""
    return Image.fromarray(world.scene(kinds, rng)[0])


def measure_stock(world: World, soundclip: SoundCLIP, count: int) -> dict[str, Any]:
    """Without a sound: is everything visible named, is anything heard?"""
    figures: dict[str, Any] = {}
    for things in (1, 2):
        rng = np.random.default_rng((20, things))
        scenes = [draw_kinds(rng, things) for _ in range(count)]
        captions = stock_captions(soundclip, [picture(world, kinds, rng) for kinds in scenes])
        told = [
            all(names(text, kind) for kind in kinds) for text, kinds in zip(captions, scenes, strict=True)
        ]
        figures[f"no sound, {things} thing(s): all named"] = share(told)
        figures[f"no sound, {things} thing(s): talks of hearing"] = share(
            ["hear" in text for text in captions]
        )
        print(captions[:3], flush=True)
    return figures


def heard_scenes(world: World, count: int, visible: bool) -> tuple[list[str], list[list[str]], list, list]:
    """Held-out scenes with a sound of a visible thing, or of one that is not there.

    Returns:
        The sounding kinds, the kinds in each scene, the sounds and the pictures.
    """
    rng = np.random.default_rng((21, visible))
    sources = [SOUNDING[i % len(SOUNDING)] for i in range(count)]
    scenes = []
    for source in sources:
        others = [str(kind) for kind in rng.permutation(KINDS) if kind != source]
        scenes.append([source, others[0]] if visible else others[:1])
    sounds = [augment(world.sound(source, rng), rng) for source in sources]
    return sources, scenes, sounds, [picture(world, kinds, rng) for kinds in scenes]


def measure_heard(world: World, soundclip: SoundCLIP, count: int) -> dict[str, Any]:
    """With a sound: is it named, and the silent visible thing, for both kinds of scenes and every k?"""
    figures: dict[str, Any] = {}
    for visible in (True, False):
        sources, scenes, sounds, pictures = heard_scenes(world, count, visible)
        place = "visible" if visible else "not visible"
        settings = [("zero", k, "projected") for k in KS] + [("drop", K, "projected"), ("zero", K, "raw")]
        for tokens, k, alignment in settings:
            soundclip.tokens, soundclip.k, soundclip.alignment = tokens, k, alignment
            captions = caption(soundclip, sounds, pictures)
            name = f"{alignment}, {tokens}, k = {k}, the thing {place}"
            rows = list(zip(captions, sources, scenes, strict=True))
            figures[f"{name}: heard"] = share([names(clause(t, "hear"), s) for t, s, _ in rows])
            figures[f"{name}: silent thing seen"] = share(
                [names(clause(t, "see"), kinds[-1]) for t, _, kinds in rows]
            )
            print(
                name,
                figures[f"{name}: heard"],
                figures[f"{name}: silent thing seen"],
                captions[:2],
                flush=True,
            )
        soundclip.tokens, soundclip.k, soundclip.alignment = "zero", K, "projected"
        if visible:
            turned = sounds[1:] + sounds[:1]
            captions = caption(soundclip, turned, pictures)
            true = [names(clause(t, "hear"), s) for t, s in zip(captions, sources, strict=True)]
            played = [
                names(clause(t, "hear"), s) for t, s in zip(captions, sources[1:] + sources[:1], strict=True)
            ]
            figures["another sound: the visible sounding kind is heard"] = share(true)
            figures["another sound: what is played is heard"] = share(played)
    return figures


def measure_drawn(soundclip: SoundCLIP, count: int) -> dict[str, Any]:
    """The kinds of `llava_soundclip.demo.kinds`: each sound with a drawing of each kind, as the tests do."""
    rng = np.random.default_rng(22)
    pairs = [(sound, seen) for sound in DRAWN_KINDS for seen in DRAWN_KINDS] * max(1, count // 16)
    sounds = [synthesise(sound, 3, RATE, rng) for sound, _ in pairs]
    captions = caption(soundclip, sounds, [make_scene(seen, 288, rng) for _, seen in pairs])
    rows = list(zip(captions, pairs, strict=True))
    return {
        "drawn kinds: heard": share([names(clause(t, "hear"), sound) for t, (sound, _) in rows]),
        "drawn kinds: another thing seen": share(
            [names(clause(t, "see"), seen) for t, (sound, seen) in rows if sound != seen]
        ),
    }


def measure_unseen(world: World, soundclip: SoundCLIP, media: Path) -> dict[str, Any]:
    """Recordings that no stage has seen, each with pictures of something else."""
    recordings: list[tuple[str, str, Path]] = []
    if (media / "esc50" / "clips.json").exists():
        for clip in json.loads((media / "esc50" / "clips.json").read_text()):
            if clip["esc50_target"] in ESC50:
                recordings.append((clip["clip"], ESC50[clip["esc50_target"]], media / "esc50" / clip["clip"]))
    recordings += [(name, kind, media / "pairs" / name) for name, kind in PAIRS.items()]
    recordings = [row for row in recordings if row[2].exists()]
    if not recordings:
        return {}
    figures: dict[str, Any] = {}
    hits, every = [], []
    for index, (name, kind, path) in enumerate(recordings):
        rng = np.random.default_rng((23, index))
        wave = decode(path.read_bytes())
        others = [str(other) for other in rng.permutation([k for k in KINDS if k != kind])[:PICTURES]]
        captions = caption(soundclip, [wave] * PICTURES, [picture(world, [other], rng) for other in others])
        told = [names(clause(text, "hear"), kind) for text in captions]
        hits += told
        every.append(sum(told) > PICTURES / 2)
        figures[f"unseen recording {name} ({phrase(kind)}): heard"] = share(told)
        print(name, kind, sum(told), captions[:3], flush=True)
    figures["unseen recordings, pictures of something else: heard"] = share(hits)
    figures["unseen recordings heard with most pictures"] = share(every)
    return figures


def measure_time(world: World, soundclip: SoundCLIP) -> dict[str, Any]:
    """Seconds for one caption after loading, median of five."""
    rng = np.random.default_rng(24)
    seconds = []
    for _ in range(5):
        wave, seen = augment(world.sound("dog", rng), rng), picture(world, ["guitar"], rng)
        began = time.monotonic()
        caption(soundclip, [wave], [seen])
        seconds.append(time.monotonic() - began)
    return {"seconds a caption": {"median": round(float(np.median(seconds)), 2), "n": len(seconds)}}


def main() -> None:
    """Measure and write."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=64, help="scenes for each figure")
    arguments.add_argument("--media", type=Path, help="folder with esc50/ and pairs/ of unseen recordings")
    arguments.add_argument("--out", type=Path, default=WEIGHTS / "measured.json")
    arguments = arguments.parse_args()
    av.logging.set_level(av.logging.ERROR)
    world = start(arguments)
    began = time.monotonic()
    soundclip = load_demo()
    figures: dict[str, Any] = {"seconds to load": {"once": round(time.monotonic() - began, 2), "n": 1}}
    figures |= measure_time(world, soundclip)
    remember(soundclip.encoder)
    figures |= measure_stock(world, soundclip, arguments.count)
    figures |= measure_drawn(soundclip, arguments.count)
    if arguments.media:
        figures |= measure_unseen(world, soundclip, arguments.media)
    figures |= measure_heard(world, soundclip, arguments.count)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    card = arguments.out.with_name("README.md")
    before, _, rest = card.read_text().partition(MARK)
    after = rest.partition(MARK.replace("<!-- ", "<!-- /"))[2]
    card.write_text(f"{before}{MARK}\n{table(figures)}{MARK.replace('<!-- ', '<!-- /')}{after}")
    print(table(figures))


if __name__ == "__main__":
    main()
