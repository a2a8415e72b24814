"""Measure the miniature for its card: on fresh scenes, and on held-out recordings.

Everything goes through the library as a user would call it. Writes `figures/measured.json` part by part; `card.py`
makes the tables from it. An interrupted run resumes.

python recipes/miniature/measure.py --media ../shared/media
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import torch
from common import draw_kinds, parser, start
from numpy.random import Generator
from PIL import Image
from settings import MEASURED, PLACES, TOKENS
from torch import Tensor
from torch.nn import functional
from world import GRID, KINDS, RATE, SOUNDING, World, augment, decode

from llava_soundclip import load_demo
from llava_soundclip.captioning import Setting
from llava_soundclip.clips import Clip
from llava_soundclip.controls import ANOTHER, CaptionControl
from llava_soundclip.demo import PROMPT, STOCK_PROMPT, K
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_scene, synthesise
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.evaluation.captions import Things
from llava_soundclip.evaluation.retrieval.ranks import ranks
from llava_soundclip.evaluation.tradeoff.plan import partners
from llava_soundclip.patching import SoundCLIP, Tokens
from llava_soundclip.prompts import chat_prompt
from llava_soundclip.substitution import Norm

BATCH = 18
ALL = GRID**2
QUARTERS = (0, 9, 18, ALL)
# Alignment, norm and control of everything that fills the CLS slot instead of the projected sound.
SLOTS: dict[str, tuple[str | float, Norm, CaptionControl | None]] = {
    "alpha": (0.5, "keep", None),
    "raw": ("raw", "keep", None),
    "raw, matched": ("raw", "match", None),
    "noise": ("projected", "keep", "noise"),
    "zero vector": ("projected", "keep", "zero"),
    "another recording": ("projected", "keep", ANOTHER),
}
PICTURES = 6  # per held-out recording
PER_KIND = 10  # pairs per kind in retrieval
# ESC-50's classes that are kinds of the miniature.
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


def share(hits: Sequence[float]) -> dict[str, Any]:
    """A share with Wilson's interval of 95 %, from hits (1) and misses (0), or their probabilities."""
    n, z = len(hits), 1.96
    p = sum(hits) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return {"share": round(p, 3), "n": n, "interval": [round(max(0, low), 3), round(min(1, high), 3)]}


def names(text: str, kind: str) -> bool:
    """Whether a text names a kind, as a whole word."""
    return re.search(rf"\b{kind}\b", text) is not None


def clause(caption: str, verb: str) -> str:
    """The text after "I hear" or "I see" in a caption; empty if there is none."""
    return " ".join(re.findall(rf"I {verb} ([^.]*)", caption))


def heard(caption: str, kind: str, recipe: str) -> bool:
    """Whether a sound is named: after "I hear", or anywhere for a model that never learnt to say so."""
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


class Captions:
    """Captions, kept in a file so that an interrupted run resumes.

    Args:
        file: JSON lines, with the captions of one setting per line.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        rows = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
        self.known: dict[str, list[str]] = {row["setting"]: row["captions"] for row in rows}

    def get(self, setting: str, make: Callable[..., list[str]], *arguments: Any) -> list[str]:
        """Captions of a setting: from the file, else `make(*arguments)`."""
        if setting not in self.known:
            began = time.monotonic()
            self.known[setting] = make(*arguments)
            with self.file.open("a") as file:
                file.write(json.dumps({"setting": setting, "captions": self.known[setting]}) + "\n")
            print(f"{setting}: {time.monotonic() - began:.0f} s, {self.known[setting][:2]}", flush=True)
        return self.known[setting]


def remember(encoder: AudioEncoder) -> None:
    """Cache an encoder's embeddings: every setting plays the same sounds."""
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


def measure_silence(
    world: World, soundclip: SoundCLIP, recipe: str, count: int, made: Captions
) -> dict[str, Any]:
    """Captions without a sound: is everything visible named, is anything heard, is anything repeated?"""
    prompt = PROMPT if recipe == "prepared" else STOCK_PROMPT
    figures: dict[str, Any] = {}
    for things in (1, 2):
        rng = np.random.default_rng((20, things))
        scenes = [draw_kinds(rng, things) for _ in range(count)]
        pictures = [picture(world, kinds, rng) for kinds in scenes]
        captions = made.get(f"{recipe}, silence, {things}", silent_captions, soundclip, pictures, prompt)
        told = [
            all(names(text, kind) for kind in kinds) for text, kinds in zip(captions, scenes, strict=True)
        ]
        figures[f"{things} named"] = share(told)
        figures[f"{things} talks of hearing"] = share(["hear" in text for text in captions])
        figures[f"{things} repeats"] = share([repeats(text) for text in captions])
    return figures


def make_scenes(world: World, count: int, visible: bool) -> tuple[list[str], list[list[str]], list, list]:
    """Scenes that show the sounding thing and a silent one, or only the silent one.

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


def scene_settings(recipe: str) -> dict[str, tuple[Tokens, Norm, Setting]]:
    """Settings by name: every k with similar and random patches, and everything that fills the CLS slot."""
    settings: dict[str, tuple[Tokens, Norm, Setting]] = {}
    for tokens in get_args(Tokens):
        for k in QUARTERS:
            if tokens == "drop" and k == ALL:
                continue  # the same as zero
            settings[f"{tokens}, {k}, similar, projected"] = tokens, "keep", Setting("projected", k)
            if k not in (0, ALL):
                random = Setting("projected", k, "random")
                settings[f"{tokens}, {k}, random, projected"] = tokens, "keep", random
    for name, (alignment, norm, control) in SLOTS.items():
        setting = Setting(alignment, K, control)
        settings[f"{TOKENS[recipe]}, {K}, similar, {name}"] = TOKENS[recipe], norm, setting
    return settings


def measure_scenes(
    world: World, soundclip: SoundCLIP, recipe: str, count: int, made: Captions
) -> dict[str, Any]:
    """Captions with a sound, in every setting of `scene_settings`."""
    figures: dict[str, Any] = {}
    for place in PLACES:
        sources, scenes, sounds, pictures = make_scenes(world, count, place == "visible")
        others = foreign(sources, scenes)
        found: dict[str, list[str]] = {}
        for name, (tokens, norm, setting) in scene_settings(recipe).items():
            played = [sounds[row] for row in others] if setting.control == ANOTHER else sounds
            soundclip.tokens, soundclip.norm = tokens, norm
            with setting.applied_to(soundclip):
                texts = made.get(f"{recipe}, {name}, {place}", caption, soundclip, played, pictures)
            found[name] = texts
            rows = list(zip(texts, sources, scenes, strict=True))
            figures[f"{name}, {place}"] = figure = {
                "heard": share([heard(text, source, recipe) for text, source, _ in rows]),
                "seen": share([seen(text, kinds[-1], recipe) for text, _, kinds in rows]),
                "repeats": share([repeats(text) for text in texts]),
            }
            if setting.control == ANOTHER:
                figure["played"] = share(
                    [heard(text, sources[row], recipe) for text, row in zip(texts, others, strict=True)]
                )
            if name.startswith("drop") and name.endswith("projected"):
                zeroed = found[name.replace("drop", "zero", 1)]
                pairs = list(zip(texts, zeroed, strict=True))
                figure["same caption as zero"] = share([text == other for text, other in pairs])
                figure["same kinds as zero"] = share(
                    [kinds_in(text) == kinds_in(other) for text, other in pairs]
                )
        soundclip.tokens, soundclip.norm = TOKENS[recipe], "keep"
    return figures


def foreign(sources: list[str], scenes: list[list[str]]) -> list[int]:
    """The sound that the control "another" plays with each scene, chosen as `eval tradeoff` does."""
    clips = [Clip(str(row), kind, "") for row, kind in enumerate(sources)]
    things = {
        clip.id: Things(sounding=(clip.source,), silent=(kinds[-1],))
        for clip, kinds in zip(clips, scenes, strict=True)
    }
    heard = partners(clips, things)
    return [int(heard[clip.id]) for clip in clips]


def measure_drawn(soundclip: SoundCLIP, recipe: str, count: int, made: Captions) -> dict[str, Any]:
    """Captions of the kinds in `llava_soundclip.demo.kinds`: each sound with a drawing of each kind."""
    rng = np.random.default_rng(22)
    pairs = [(sound, shown) for sound in DRAWN_KINDS for shown in DRAWN_KINDS] * max(1, count // 16)
    sounds = [synthesise(sound, 3, RATE, rng) for sound, _ in pairs]
    pictures = [make_scene(shown, 288, rng) for _, shown in pairs]
    captions = made.get(f"{recipe}, drawn", caption, soundclip, sounds, pictures)
    rows = list(zip(captions, pairs, strict=True))
    return {
        "heard": share([heard(text, sound, recipe) for text, (sound, _) in rows]),
        "seen": share([seen(text, shown, recipe) for text, (sound, shown) in rows if sound != shown]),
    }


def unseen_recordings(world: World, media: Path | None) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """Held-out recordings by origin: name, kind and waveform."""
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
    world: World,
    soundclip: SoundCLIP,
    recipe: str,
    recordings: dict[str, list[tuple[str, str, np.ndarray]]],
    made: Captions,
) -> dict[str, Any]:
    """Captions of held-out recordings, with pictures that show the sounding thing, and with others."""
    figures: dict[str, Any] = {}
    for origin, rows in recordings.items():
        for place in PLACES:
            visible = place == "visible"
            hits, every = [], []
            for index, (name, kind, wave) in enumerate(rows):
                rng = np.random.default_rng((23, index, visible))
                others = [str(k) for k in rng.permutation([k for k in KINDS if k != kind])[:PICTURES]]
                scenes = [[kind, other] if visible else [other] for other in others]
                pictures = [picture(world, kinds, rng) for kinds in scenes]
                waves = [wave] * PICTURES
                captions = made.get(f"{recipe}, {name}, {place}", caption, soundclip, waves, pictures)
                told = [heard(text, kind, recipe) for text in captions]
                hits += told
                every.append(sum(told) > PICTURES / 2)
                if not visible:
                    figures[f"recording {name}"] = {"kind": kind, **share(told)}
            if hits:
                figures[f"{origin}, {place}"] = {"heard": share(hits), "most": share(every)}
    return figures


def measure_retrieval(world: World, soundclip: SoundCLIP) -> dict[str, Any]:
    """Retrieval as in Appendix E, raw and projected, on fresh variations and pictures."""
    rng = np.random.default_rng(25)
    kinds = list(SOUNDING) * PER_KIND
    waves = [augment(world.sound(kind, rng), rng) for kind in kinds]
    pictures = [picture(world, [kind], rng) for kind in kinds]
    pixels = soundclip.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    figures: dict[str, Any] = {}
    with torch.no_grad():
        cls = functional.normalize(soundclip.host.tower_tokens(pixels)[:, 0].float(), dim=-1)
        z_a = soundclip.encoder.embed(waves, RATE)
        for alignment in ("raw", "projected"):
            soundclip.alignment = alignment
            f_a = functional.normalize(soundclip.align(z_a), dim=-1)
            found = f_a @ cls.T
            for direction, places, cosine in zip(
                ("A2V", "V2A"), ranks(f_a, cls), (found, found.T), strict=True
            ):
                best = cosine.argmax(1)
                figures[f"{alignment}, {direction}"] = {
                    "n": len(kinds),
                    "mean rank": round(places.mean.mean().item(), 2),
                    **{f"Top-{top}": share(places.within(top).tolist()) for top in (1, 3, 10)},
                    "same kind": share(
                        [kinds[i] == kind for i, kind in zip(best.tolist(), kinds, strict=True)]
                    ),
                }
    print(figures, flush=True)
    return figures


def measure_time(world: World) -> dict[str, Any]:
    """Seconds to load from the cache, and for one caption."""
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
    """Measure part by part, and write each part."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=3 * len(SOUNDING), help="number of scenes per figure")
    arguments.add_argument("--media", type=Path, help="folder with esc50/ and pairs/ of unseen recordings")
    arguments.add_argument("--out", type=Path, default=MEASURED, help="JSON file for the figures")
    arguments.add_argument("--recipe", choices=TOKENS, help="measure this mm_projector only")
    arguments = arguments.parse_args()
    av.logging.set_level(av.logging.ERROR)
    world = start(arguments)
    figures: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def keep(name: str, part: dict[str, Any]) -> None:
        figures[name] = part
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")

    recordings = unseen_recordings(world, arguments.media)
    captions = Captions(arguments.work / f"captions-{arguments.count}.jsonl")
    recipes = [arguments.recipe] if arguments.recipe else list(TOKENS)
    for recipe in recipes:
        soundclip = load_demo(mm_projector=recipe, tokens=TOKENS[recipe])
        remember(soundclip.encoder)
        if recipe == "prepared":
            keep("retrieval", measure_retrieval(world, soundclip))
            keep("drawn", measure_drawn(soundclip, recipe, arguments.count, captions))
        keep(f"{recipe}: unseen", measure_unseen(world, soundclip, recipe, recordings, captions))
        keep(f"{recipe}: silence", measure_silence(world, soundclip, recipe, 2 * arguments.count, captions))
        keep(f"{recipe}: scenes", measure_scenes(world, soundclip, recipe, arguments.count, captions))
        soundclip.unpatch()
    keep("time", measure_time(world))
    captions.file.unlink(missing_ok=True)  # complete, so the next run starts over


if __name__ == "__main__":
    main()
