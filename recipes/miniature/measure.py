"""Measure the miniature and write the figures of its card: fresh scenes, and recordings never trained on.

Everything goes through the library as a user would call it. Writes `figures/measured.json`, part by part; `card.py`
makes the tables of the card out of it.

python recipes/miniature/measure.py --media ../shared/media
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
from common import draw_kinds, parser, start
from numpy.random import Generator
from PIL import Image
from settings import MEASURED
from torch import Tensor
from torch.nn import functional
from world import KINDS, RATE, SOUNDING, World, augment, decode

from llava_soundclip import patching
from llava_soundclip.demo import PROMPT, STOCK_PROMPT, K, load_demo
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_scene, synthesise
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.patching import SoundCLIP
from llava_soundclip.prompts import chat_prompt
from llava_soundclip.substitution import AudioTokenSubstituter, Selection

BATCH = 18
TOKENS = {"prepared": "zero", "stock": "drop"}  # how each mm_projector hears best
ALL = 36
QUARTERS = (0, 9, 18, ALL)
ALPHA = 0.5
PICTURES = 6  # pictures that each unseen recording is played with
PER_KIND = 10  # pairs of each kind in retrieval
# Recordings of the miniature's kinds in the test media; the number is ESC-50's class.
ESC50 = {
    0: "dog",
    4: "frog",
    5: "cat",
    14: "bird",
    37: "alarm clock",
    42: "fire truck",
    43: "car",
    46: "bell",
}
PAIRS = {"dog_audio.wav": "dog", "bird_audio.wav": "bird", "car_audio.wav": "car"}


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """A share with Wilson's interval of 95 %."""
    n, z = len(hits), 1.96
    p = sum(hits) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return {"share": round(p, 3), "n": n, "interval": [round(max(0, low), 3), round(min(1, high), 3)]}


def names(text: str, kind: str) -> bool:
    """Whether a text names a kind, as a whole word."""
    return re.search(rf"\b{kind}\b", text) is not None


def clause(caption: str, verb: str) -> str:
    """What follows "I hear" or "I see" in a caption; empty if it doesn't say so."""
    return " ".join(re.findall(rf"I {verb} ([^.]*)", caption))


def heard(caption: str, kind: str, recipe: str) -> bool:
    """Whether a sound is named: where it says "I hear", or anywhere by a model that never learnt to say so."""
    return names(clause(caption, "hear") if recipe == "prepared" else caption, kind)


def seen(caption: str, kind: str, recipe: str) -> bool:
    """Whether a silent thing is named."""
    return names(clause(caption, "see") if recipe == "prepared" else caption, kind)


def kinds_in(caption: str) -> set[tuple[str, str]]:
    """The kinds that a caption names, each with the verb of its sentence."""
    return {(part.strip()[:5], kind) for part in caption.split(".") for kind in KINDS if names(part, kind)}


def repeats(caption: str) -> bool:
    """Whether one clause names a kind twice ("a violin, a violin")."""
    return any(len(re.findall(rf"\b{kind}\b", part)) > 1 for part in caption.split(".") for kind in KINDS)


class RandomSubstituter(AudioTokenSubstituter):
    """Keeps k patches at random, the control of every figure about k."""

    def select(self, tokens: Tensor, audio: Tensor, candidates: Tensor | None = None) -> Selection:
        similarity = super().select(tokens, audio, candidates).similarity
        generator = torch.Generator().manual_seed(round(1e3 * float(audio.abs().sum())) % 2**31)
        order = torch.rand(similarity.shape, generator=generator).argsort(1)
        return Selection(similarity, order[:, : self.k].sort(1).values)


@contextmanager
def slot(soundclip: SoundCLIP, what: str) -> Iterator[None]:
    """Fill the CLS slot with a sound in one of several alignments, or with a control."""
    align, generator = soundclip.align, torch.Generator().manual_seed(30)

    def control(embeddings: Tensor) -> Tensor:
        f_a = align(embeddings)
        noise = functional.normalize(torch.randn(f_a.shape, generator=generator), dim=-1)
        return noise * f_a.norm(dim=-1, keepdim=True) * (what == "noise")

    before = soundclip.alignment, soundclip.norm
    try:
        if what in ("noise", "zero vector"):
            soundclip.align = control  # type: ignore[method-assign]
        elif what == "alpha":
            soundclip.alignment = ALPHA
        elif what.startswith("raw"):
            soundclip.alignment, soundclip.norm = "raw", "match" if what == "raw, matched" else "keep"
        yield
    finally:
        soundclip.__dict__.pop("align", None)
        soundclip.alignment, soundclip.norm = before


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


def silent_captions(soundclip: SoundCLIP, pictures: list[Image.Image], prompt: str) -> list[str]:
    """Caption pictures without a sound."""
    processor, captions = soundclip.processor, []
    text = chat_prompt(processor, prompt)
    for at in range(0, len(pictures), BATCH):
        batch = pictures[at : at + BATCH]
        inputs = processor(images=batch, text=[text] * len(batch), return_tensors="pt", padding=True)
        output = soundclip.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        captions += processor.batch_decode(new, skip_special_tokens=True)
    return captions


def picture(world: World, kinds: list[str], rng: Generator) -> Image.Image:
    """Make a scene as a picture."""
    return Image.fromarray(world.scene(kinds, rng)[0])


def measure_silence(world: World, soundclip: SoundCLIP, count: int, prompt: str) -> dict[str, Any]:
    """Without a sound: is everything visible named, is anything heard, is anything said twice?"""
    figures: dict[str, Any] = {}
    for things in (1, 2):
        rng = np.random.default_rng((20, things))
        scenes = [draw_kinds(rng, things) for _ in range(count)]
        captions = silent_captions(soundclip, [picture(world, kinds, rng) for kinds in scenes], prompt)
        told = [
            all(names(text, kind) for kind in kinds) for text, kinds in zip(captions, scenes, strict=True)
        ]
        figures[f"{things} named"] = share(told)
        figures[f"{things} talks of hearing"] = share(["hear" in text for text in captions])
        figures[f"{things} repeats"] = share([repeats(text) for text in captions])
        print(things, figures[f"{things} named"], captions[:3], flush=True)
    return figures


def make_scenes(world: World, count: int, visible: bool) -> tuple[list[str], list[list[str]], list, list]:
    """Scenes with a sound of a visible thing and a silent one, or a silent one alone.

    Returns:
        The sounding kinds, the kinds in each scene (the silent one last), the sounds and the pictures.
    """
    rng = np.random.default_rng((21, visible))
    sources = [SOUNDING[i % len(SOUNDING)] for i in range(count)]
    scenes = []
    for source in sources:
        other = str(rng.choice([kind for kind in KINDS if kind != source]))
        scenes.append([source, other] if visible else [other])
    sounds = [augment(world.sound(source, rng), rng) for source in sources]
    return sources, scenes, sounds, [picture(world, kinds, rng) for kinds in scenes]


def measure_scenes(world: World, soundclip: SoundCLIP, recipe: str, count: int) -> dict[str, Any]:
    """With a sound: what is named for every k, with every choice of patches, and for what fills the slot."""
    budgets = [
        (tokens, k, choice)
        for tokens in ("zero", "drop")
        for k in QUARTERS
        for choice in ("similar", "random")
        if not (choice == "random" and k in (0, ALL)) and not (tokens == "drop" and k == ALL)
    ]
    slots = ("alpha", "raw", "raw, matched", "noise", "zero vector", "another recording")
    settings = [(*budget, "projected") for budget in budgets]
    settings += [(TOKENS[recipe], K, "similar", what) for what in slots]
    figures: dict[str, Any] = {}
    for visible in (True, False):
        zeroed: dict[tuple[int, str], list[str]] = {}
        sources, scenes, sounds, pictures = make_scenes(world, count, visible)
        for tokens, k, choice, what in settings:
            soundclip.tokens, soundclip.k = tokens, k
            chooser = RandomSubstituter if choice == "random" else AudioTokenSubstituter
            played, playing = sounds, sources
            if what == "another recording":  # of another kind that isn't in the picture
                rows = [
                    foreign(sources, kinds, source) for source, kinds in zip(sources, scenes, strict=True)
                ]
                played, playing = [sounds[row] for row in rows], [sources[row] for row in rows]
            with slot(soundclip, what), mock.patch.object(patching, "AudioTokenSubstituter", chooser):
                captions = caption(soundclip, played, pictures)
            rows = list(zip(captions, sources, scenes, strict=True))
            figure = {
                "heard": share([heard(text, source, recipe) for text, source, _ in rows]),
                "seen": share([seen(text, kinds[-1], recipe) for text, _, kinds in rows]),
                "repeats": share([repeats(text) for text in captions]),
            }
            if what == "another recording":
                figure["played"] = share(
                    [heard(text, kind, recipe) for text, kind in zip(captions, playing, strict=True)]
                )
            if (tokens, what) == ("zero", "projected"):
                zeroed[k, choice] = captions
            elif what == "projected":
                pairs = list(zip(captions, zeroed[k, choice], strict=True))
                figure["same caption as zero"] = share([text == other for text, other in pairs])
                figure["same kinds as zero"] = share(
                    [kinds_in(text) == kinds_in(other) for text, other in pairs]
                )
            place = "visible" if visible else "not visible"
            figures[f"{tokens}, {k}, {choice}, {what}, {place}"] = figure
            print(
                recipe,
                place,
                tokens,
                k,
                choice,
                what,
                figure["heard"],
                figure["seen"]["share"],
                captions[:2],
                flush=True,
            )
    soundclip.tokens, soundclip.k = TOKENS[recipe], K
    return figures


def foreign(sources: list[str], shown: list[str], source: str) -> int:
    """Find a sound of a kind that is neither shown nor the scene's own."""
    start = sources.index(source)
    turned = [*range(start + 1, len(sources)), *range(start)]
    return next(row for row in turned if sources[row] not in (source, *shown))


def measure_drawn(soundclip: SoundCLIP, recipe: str, count: int) -> dict[str, Any]:
    """The kinds of `llava_soundclip.demo.kinds`: each sound with a drawing of each kind, as the tests do."""
    rng = np.random.default_rng(22)
    pairs = [(sound, shown) for sound in DRAWN_KINDS for shown in DRAWN_KINDS] * max(1, count // 16)
    sounds = [synthesise(sound, 3, RATE, rng) for sound, _ in pairs]
    captions = caption(soundclip, sounds, [make_scene(shown, 288, rng) for _, shown in pairs])
    rows = list(zip(captions, pairs, strict=True))
    return {
        "heard": share([heard(text, sound, recipe) for text, (sound, _) in rows]),
        "seen": share([seen(text, shown, recipe) for text, (sound, shown) in rows if sound != shown]),
    }


def unseen_recordings(world: World, media: Path | None) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """Whole recordings that no stage has trained on: name, kind and waveform, by where they come from."""
    held_out = [(f"{kind}, held out", kind, wave) for kind in SOUNDING for wave in world.held_out[kind]]
    far: list[tuple[str, str, np.ndarray]] = []
    if media:
        for clip in json.loads((media / "esc50" / "clips.json").read_text()):
            if kind := ESC50.get(clip["esc50_target"]):
                wave = decode((media / "esc50" / clip["clip"]).read_bytes())
                far.append((clip["clip"], kind, wave))
        far += [(name, kind, decode((media / "pairs" / name).read_bytes())) for name, kind in PAIRS.items()]
    return {"held out": held_out, "far": far}


def measure_unseen(
    world: World, soundclip: SoundCLIP, recipe: str, recordings: dict[str, list[tuple[str, str, np.ndarray]]]
) -> dict[str, Any]:
    """Unseen recordings, each with pictures of the thing and something else, and of something else alone."""
    figures: dict[str, Any] = {}
    for origin, rows in recordings.items():
        for visible in (True, False):
            hits, every = [], []
            for index, (name, kind, wave) in enumerate(rows):
                rng = np.random.default_rng((23, index, visible))
                others = [str(k) for k in rng.permutation([k for k in KINDS if k != kind])[:PICTURES]]
                scenes = [[kind, other] if visible else [other] for other in others]
                captions = caption(
                    soundclip, [wave] * PICTURES, [picture(world, kinds, rng) for kinds in scenes]
                )
                told = [heard(text, kind, recipe) for text in captions]
                hits += told
                every.append(sum(told) > PICTURES / 2)
                if not visible:
                    figures[f"recording {name}"] = {"kind": kind, **share(told)}
                print(
                    recipe,
                    name,
                    kind,
                    "visible" if visible else "not visible",
                    sum(told),
                    captions[:2],
                    flush=True,
                )
            place = "visible" if visible else "not visible"
            if hits:
                figures[f"{origin}, {place}"] = {"heard": share(hits), "most": share(every)}
    return figures


def ranks(cosine: Tensor) -> Tensor:
    """Rank of each query's own pair among all, 1 the best: cosine is (n queries, n found), pairs on its diagonal."""
    return 1 + (cosine > cosine.diagonal()[:, None]).sum(1)


def measure_retrieval(world: World, soundclip: SoundCLIP) -> dict[str, Any]:
    """Sound to picture and back as in Appendix E, raw and projected: fresh variations, fresh pictures."""
    rng = np.random.default_rng(25)
    kinds = list(SOUNDING) * PER_KIND
    waves = [augment(world.sound(kind, rng), rng) for kind in kinds]
    pictures = [picture(world, [kind], rng) for kind in kinds]
    pixels = soundclip.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    figures: dict[str, Any] = {}
    with torch.no_grad():
        cls = soundclip._host.tower_tokens(pixels)[:, 0].float()
        z_a = soundclip.encoder.embed(waves, RATE)
        for alignment in ("raw", "projected"):
            soundclip.alignment = alignment
            f_a = soundclip.align(z_a)
            for direction, pair in (("A2V", (f_a, cls)), ("V2A", (cls, f_a))):
                query, found = (functional.normalize(side, dim=-1) for side in pair)
                cosine = query @ found.T
                rank, best = ranks(cosine), cosine.argmax(1)
                figures[f"{alignment}, {direction}"] = {
                    "n": len(kinds),
                    "mean rank": round(rank.float().mean().item(), 2),
                    **{f"Top-{top}": share((rank <= top).tolist()) for top in (1, 3, 10)},
                    "same kind": share(
                        [kinds[i] == kind for i, kind in zip(best.tolist(), kinds, strict=True)]
                    ),
                }
    print(figures, flush=True)
    return figures


def measure_time(world: World) -> dict[str, Any]:
    """Seconds to load from the cache, and for one caption after that."""
    load_demo()
    began = time.monotonic()
    soundclip = load_demo()
    loading = time.monotonic() - began
    rng, seconds = np.random.default_rng(24), []
    for _ in range(7):
        wave, shown = augment(world.sound("dog", rng), rng), picture(world, ["guitar"], rng)
        began = time.monotonic()
        caption(soundclip, [wave], [shown])
        seconds.append(time.monotonic() - began)
    return {
        "loading": round(loading, 2),
        "caption": {
            "median": round(float(np.median(seconds)), 2),
            "most": round(max(seconds), 2),
            "n": len(seconds),
        },
    }


def main() -> None:
    """Measure part by part and write."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=3 * len(SOUNDING), help="scenes for each figure")
    arguments.add_argument("--media", type=Path, help="folder with esc50/ and pairs/ of unseen recordings")
    arguments.add_argument("--out", type=Path, default=MEASURED)
    arguments.add_argument("--recipe", choices=TOKENS, help="of one mm_projector only")
    arguments = arguments.parse_args()
    av.logging.set_level(av.logging.ERROR)
    world = start(arguments)
    figures: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def keep(name: str, part: dict[str, Any]) -> None:
        figures[name] = part
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")

    recordings = unseen_recordings(world, arguments.media)
    for recipe in [arguments.recipe] if arguments.recipe else TOKENS:
        soundclip = load_demo(mm_projector=recipe, tokens=TOKENS[recipe])
        remember(soundclip.encoder)
        if recipe == "prepared":
            keep("retrieval", measure_retrieval(world, soundclip))
            keep("drawn", measure_drawn(soundclip, recipe, arguments.count))
        keep(f"{recipe}: unseen", measure_unseen(world, soundclip, recipe, recordings))
        prompt = PROMPT if recipe == "prepared" else STOCK_PROMPT
        keep(f"{recipe}: silence", measure_silence(world, soundclip, 2 * arguments.count, prompt))
        keep(f"{recipe}: scenes", measure_scenes(world, soundclip, recipe, arguments.count))
        soundclip.unpatch()
    keep("time", measure_time(world))


if __name__ == "__main__":
    main()
