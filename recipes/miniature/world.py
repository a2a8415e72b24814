"""The miniature's world: pictures and recordings, read in place from Tux Paint and GCompris.

Pictures are cut-outs, recordings are waveforms at Whisper's rate. A few kinds are drawn and synthesised by
`llava_soundclip.demo.kinds`; the others come from Debian's `tuxpaint-stamps-default` and `gcompris-qt-data`.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance

from llava_soundclip.demo.kinds import DRAWN_KINDS, compose, draw, synthesise

SIZE = 96  # pixels, width and height of a scene
PATCH = 16  # pixels
GRID = SIZE // PATCH
RATE = 16_000  # Hz, Whisper's rate
CUTOUT = 144  # longest side of a cut-out kept in memory, in pixels


@dataclass(frozen=True)
class Source:
    """Paths of a kind's pictures and recordings; "gc:" names a file in GCompris' archives.

    Recordings in `held_out` are for measuring and are never trained on.
    """

    pictures: tuple[str, ...] = ()
    sounds: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


# Pigs, owls, trumpets and trains have no sounds here: their recordings are too few, or too much like those of others,
# for a new one to be recognised.
MAMMALS, BIRDS = "animals/mammals", "animals/birds"
WORDS = "gc:lang/resource/words_sample"
FARM, INSTRUMENTS = "gc:explore_farm_animals/resource/animals", "gc:instruments/resource"
GAME = "gc:memory-sound/resource"
MUSIC = "hobbies/music"
SOURCES: dict[str, Source] = {
    "dog": Source(
        (f"{MAMMALS}/dogs/dog.png", f"{MAMMALS}/dogs/dingo.png", f"{WORDS}/dog.webp"),
        (f"{MAMMALS}/dogs/dog.ogg", f"{GAME}/LRBark_1_LA_cut.ogg", f"{GAME}/LRBark_3_LA_cut.ogg"),
        (f"{FARM}/dog.ogg",),
    ),
    "cat": Source((f"{WORDS}/cat.webp",), ("seasonal/halloween/blackcat.ogg", f"{FARM}/cat.ogg")),
    "cow": Source(
        (f"{MAMMALS}/bovines/cow.png", f"{MAMMALS}/bovines/cow_white.png", f"{WORDS}/cow.webp"),
        (f"{MAMMALS}/bovines/cow.ogg", f"{MAMMALS}/bovines/cow_white.ogg"),
        (f"{FARM}/cow.ogg",),
    ),
    "horse": Source(
        (f"{MAMMALS}/equines/horse.png", f"{WORDS}/horse.webp"),
        (f"{MAMMALS}/equines/horse.ogg", f"{FARM}/horse.ogg"),
    ),
    "sheep": Source(
        (f"{MAMMALS}/bovines/sheep.png", f"{MAMMALS}/bovines/ram.png", f"{WORDS}/sheep.webp"),
        (f"{MAMMALS}/bovines/sheep.ogg", f"{MAMMALS}/bovines/sheep_lamb.ogg"),
        (f"{FARM}/sheep.ogg",),
    ),
    "pig": Source((f"{MAMMALS}/pig.png", f"{MAMMALS}/pig_golden.png", f"{WORDS}/pig.webp")),
    "duck": Source(
        (f"{BIRDS}/duck.png", f"{BIRDS}/drake.png", f"{WORDS}/duck.webp"),
        (f"{BIRDS}/duck.ogg", f"{BIRDS}/drake.ogg"),
        (f"{FARM}/duck.ogg",),
    ),
    "rooster": Source((f"{BIRDS}/rooster.png",), (f"{BIRDS}/rooster.ogg",)),
    "frog": Source(
        ("animals/amphibians/frog.png", "animals/amphibians/frog-1.png", f"{WORDS}/frog.webp"),
        ("animals/amphibians/frog.ogg", f"{GAME}/LRFrogsInPondDuringStormLACut.ogg"),
    ),
    "owl": Source((f"{BIRDS}/owl.png", f"{WORDS}/owl.webp")),
    "bird": Source(
        (f"{BIRDS}/lark.png", f"{BIRDS}/blackbird.png", f"{WORDS}/bird.webp"),
        (f"{BIRDS}/lark.ogg", f"{BIRDS}/blackbird.ogg"),
    ),
    "violin": Source(
        (f"{MUSIC}/string/violin.png",), (f"{MUSIC}/string/violin.ogg", f"{INSTRUMENTS}/violin.ogg")
    ),
    "guitar": Source(
        (
            f"{MUSIC}/string/guitar_classical.png",
            f"{MUSIC}/string/guitar2.png",
            f"{MUSIC}/string/guitar_electric.png",
        ),
        (f"{INSTRUMENTS}/guitar.ogg", f"{INSTRUMENTS}/electric_guitar.ogg"),
        (f"{GAME}/guitar_melody.ogg",),
    ),
    "drum": Source(
        (f"{MUSIC}/percussion/drumkit.png", f"{MUSIC}/percussion/drum_tomtom_floor.png"),
        (
            f"{MUSIC}/percussion/drumkit.ogg",
            f"{MUSIC}/percussion/drum_tomtom_floor.ogg",
            f"{INSTRUMENTS}/snare_drum.ogg",
        ),
        (f"{INSTRUMENTS}/drum_kit.ogg",),
    ),
    "trumpet": Source((f"{MUSIC}/brass/trumpet.png",)),
    "fire truck": Source(
        ("vehicles/emergency/firetruck.png", "vehicles/emergency/cartoon/fire_engine.png"),
        ("vehicles/emergency/firetruck.ogg",),
    ),
    "car": Source(
        ("vehicles/auto/beetle.png", "vehicles/auto/sportscar2.png", "vehicles/auto/sedan.png"),
        ("gc:traffic/resource/car.wav", f"{GAME}/LRStartAndStopCarEngine1LACut.ogg"),
    ),
    "train": Source(("vehicles/locomotive/cartoon/toy_train.png",)),
    "alarm clock": Source(),
    "bell": Source(),
    "whistle": Source(),
    "rain": Source((), (f"{GAME}/LRRain_in_garden_01_LA_cut.ogg",)),
    "apple": Source(("food/fruit/apple_red.png", "food/fruit/apple_fuji.png", f"{WORDS}/apple.webp")),
    "rose": Source(("plants/flowers/rose.png",)),
    "mug": Source(("household/dishes/mug.png",)),
    "tree": Source(
        ("plants/trees/holm_oak.png", "plants/trees/liberia-palm.png", "plants/trees/tree336.png")
    ),
    "hat": Source(
        ("clothes/hats/sombrero.png", "clothes/hats/blue_fedora.png", "clothes/hats/green_fedora.png")
    ),
    "pumpkin": Source(("food/vegetables/pumpkin_small.png",)),
}
KINDS: tuple[str, ...] = tuple(SOURCES)
SOUNDING: tuple[str, ...] = tuple(kind for kind in KINDS if SOURCES[kind].sounds or kind in DRAWN_KINDS)
SILENT: tuple[str, ...] = tuple(kind for kind in KINDS if kind not in SOUNDING)
BACKGROUND = len(KINDS)  # label of a patch that shows no thing


def read_rcc(path: Path) -> dict[str, bytes]:
    """Read every file of a Qt resource archive: a tree of names, with stored or deflated contents."""
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{path} is not a Qt resource archive")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    node_size = 22 if version >= 2 else 14
    files: dict[str, bytes] = {}

    def walk(node: int, folder: str) -> None:
        at = tree + node * node_size
        name_at, flags = struct.unpack(">IH", data[at : at + 6])
        here = ""
        if node:
            length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
            start = names + name_at + 6
            here = f"{folder}/{data[start : start + 2 * length].decode('utf-16-be')}"
        if flags & 2:  # a folder
            count, first = struct.unpack(">2I", data[at + 6 : at + 14])
            for child in range(first, first + count):
                walk(child, here)
            return
        start = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
        length = struct.unpack(">I", data[start : start + 4])[0]
        content = data[start + 4 : start + 4 + length]
        files[here] = zlib.decompress(content[4:]) if flags & 1 else content

    walk(0, "")
    return files


def decode(content: bytes) -> np.ndarray:
    """Decode a recording to mono at `RATE`, and trim the silence around it: float32, shape (samples,)."""
    with av.open(io.BytesIO(content)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1]
    return wave / np.abs(wave).max()


def shrink(cutout: Image.Image, share: float) -> Image.Image:
    """Pad a cut-out, so that `compose` shows it at `share` of its usual size."""
    wide, high = (round(side / share) for side in cutout.size)
    canvas = Image.new("RGBA", (wide, high), (0, 0, 0, 0))
    canvas.paste(cutout, ((wide - cutout.width) // 2, (high - cutout.height) // 2))
    return canvas


@dataclass
class World:
    """Every picture and recording, loaded once.

    Args:
        stamps: the folder of Tux Paint's stamps.
        rcc: the folder of GCompris' `.rcc` archives.
    """

    stamps: Path
    rcc: Path
    cutouts: dict[str, list[Image.Image]] = field(default_factory=dict)
    recordings: dict[str, list[np.ndarray]] = field(default_factory=dict)
    held_out: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        archives = cache(read_rcc)

        def content(name: str) -> bytes:
            if not name.startswith("gc:"):
                return (self.stamps / name).read_bytes()
            activity, _, rest = name.removeprefix("gc:").partition("/")
            archive = "memory-sound" if activity == "memory-sound" else activity
            return archives(self.rcc / f"{archive}.rcc")[f"/gcompris/src/activities/{activity}/{rest}"]

        for kind, source in SOURCES.items():
            self.cutouts[kind] = []
            for name in source.pictures:
                picture = Image.open(io.BytesIO(content(name))).convert("RGBA")
                picture = picture.crop(picture.getchannel("A").getbbox())
                picture.thumbnail((CUTOUT, CUTOUT))
                self.cutouts[kind].append(picture)
            self.recordings[kind] = [decode(content(name)) for name in source.sounds]
            self.held_out[kind] = [decode(content(name)) for name in source.held_out]

    def cutout(self, kind: str, rng: Generator) -> Image.Image:
        """A cut-out of one thing, with slightly different colours each time."""
        if kind in DRAWN_KINDS:
            return draw(kind, CUTOUT // 2, rng)
        picture = self.cutouts[kind][rng.integers(len(self.cutouts[kind]))]
        alpha = picture.getchannel("A")
        plain = ImageEnhance.Color(picture.convert("RGB")).enhance(rng.uniform(0.7, 1.3))
        plain = ImageEnhance.Brightness(plain).enhance(rng.uniform(0.75, 1.2))
        plain.putalpha(alpha)
        return plain

    def scene(self, kinds: list[str], rng: Generator, smallest: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Make a scene.

        Args:
            kinds: the kinds that it shows.
            rng: source of the random choices.
            smallest: smallest size of the things, as a share of their usual size.

        Returns:
            The picture, uint8 (SIZE, SIZE, 3), and one label per patch (GRID * GRID,): the index in `kinds` of
            the thing that it shows, -1 for background, -2 if it shows too little of a thing.
        """
        cutouts = [self.cutout(kind, rng) for kind in kinds]
        if smallest < 1:
            cutouts = [shrink(cutout, rng.uniform(smallest, 1)) for cutout in cutouts]
        picture, cover = compose(cutouts, SIZE, rng)
        share = cover.reshape(len(kinds), GRID, PATCH, GRID, PATCH).mean((2, 4)).reshape(len(kinds), -1)
        most = share.max(0)
        labels = np.where(most > 0.22, share.argmax(0), np.where(most < 0.06, -1, -2))
        return np.asarray(picture), labels

    def sound(self, kind: str, rng: Generator) -> np.ndarray:
        """Pick a recording from the training set, or synthesise a sound: float32, shape (samples,)."""
        recordings = self.recordings[kind]
        if kind in DRAWN_KINDS and (not recordings or rng.random() < 0.75):
            return synthesise(kind, rng.uniform(2, 5), RATE, rng)
        return recordings[rng.integers(len(recordings))]


def augment(wave: np.ndarray, rng: Generator) -> np.ndarray:
    """Vary a recording: speed, a cut, pauses and repeats, a room, a microphone, clipping and noise.

    Args:
        wave: float32, shape (samples,).
        rng: source of the variation.

    Returns:
        float32, shape (samples,), 1 to 5 seconds long.
    """
    widest = math.log(1.17 if rng.random() < 0.4 else 1.5)
    speed = math.exp(rng.uniform(-widest, widest))
    wave = np.interp(np.arange(0, len(wave) - 1, speed), np.arange(len(wave)), wave)
    out = np.zeros(int(rng.uniform(1.0, 5.0) * RATE))
    longest = int(rng.uniform(0.6, 1.0) * len(out))
    if len(wave) > longest:
        start = int(rng.integers(0, len(wave) - longest + 1))
        wave = wave[start : start + longest]
    at = int(rng.uniform(0, max(1, min(0.5 * RATE, len(out) - len(wave)))))
    pause = rng.uniform(0, 0.6) * RATE if rng.random() < 0.6 else len(out)  # else once, then silence
    while at < len(out):
        piece = wave[: len(out) - at]
        out[at : at + len(piece)] += rng.uniform(0.6, 1.0) * piece
        at += int(len(wave) + pause) + 1
    if rng.random() < 0.5:
        length = int(rng.uniform(0.1, 1.2) * RATE)
        room = rng.normal(0, 1, length) * np.exp(-6.9 * np.arange(length) / length)
        room *= rng.uniform(0.1, 0.7) / np.sqrt((room**2).sum())
        size = len(out) + length
        out = out + np.fft.irfft(np.fft.rfft(out, size) * np.fft.rfft(room, size), size)[: len(out)]
    spectrum = np.fft.rfft(out)
    frequency = np.fft.rfftfreq(len(out), 1 / RATE)
    curve = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 6), rng.normal(0, 5, 6))
    gain = 10 ** (curve / 20)  # from decibels
    if rng.random() < 0.3:
        gain = gain / (1 + (rng.uniform(60, 400) / np.maximum(frequency, 1)) ** 4) ** 0.5
    if rng.random() < 0.3:
        gain = gain / (1 + (frequency / rng.uniform(2500, 7000)) ** 4) ** 0.5
    out = np.fft.irfft(spectrum * gain, len(out))
    out = out / max(1e-9, float(np.abs(out).max()))
    if rng.random() < 0.2:
        out = np.tanh(rng.uniform(1, 4) * out)
    if rng.random() < 0.6:
        colour = np.maximum(frequency, 30) ** -rng.uniform(0, 1)
        noise = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, len(out))) * colour, len(out))
        level = np.sqrt((out**2).mean()) * 10 ** (-rng.uniform(8, 45) / 20)
        out = out + level * noise / max(1e-9, float(noise.std()))
    return (out / max(1e-9, float(np.abs(out).max())) * rng.uniform(0.1, 1.0)).astype(np.float32)
