"""Things that the library draws and synthesises, so that a demo needs no media from elsewhere.

Every drawing and every recording differs: each function takes a `numpy.random.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

SUPERSAMPLING = 3  # drawings are made larger by this factor and scaled down, for smooth edges
CLIP_SIZE = 288  # width and height of a demo video in pixels
CLIP_RATE = 44_100  # samples per second of a demo video
CLIP_FPS = 8

Colour = tuple[int, int, int]


def _colour(rng: Generator, low: int = 30, high: int = 255) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


# Drawings: each takes a canvas of side `s` and paints one thing on it.


def _draw_alarm_clock(draw: ImageDraw.ImageDraw, s: int, rng: Generator) -> None:
    body = _colour(rng)
    metal = _shade(body, 0.6)
    cx, cy, r = 0.5 * s, 0.57 * s, 0.33 * s
    for side in (-1, 1):
        x, y = cx + side * 0.24 * s, 0.2 * s
        draw.line(
            (cx + side * 0.2 * s, cy + 0.2 * s, cx + side * 0.28 * s, 0.96 * s), fill=metal, width=s // 16
        )
        draw.pieslice(
            (x - 0.15 * s, y - 0.13 * s, x + 0.15 * s, y + 0.17 * s),
            180 + side * 35,
            360 + side * 35,
            fill=metal,
        )
    draw.line((cx, 0.08 * s, cx, 0.3 * s), fill=metal, width=s // 20)
    draw.ellipse((cx - 0.05 * s, 0.05 * s, cx + 0.05 * s, 0.13 * s), fill=metal)
    draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=body)
    face = 0.8 * r
    draw.ellipse((cx - face, cy - face, cx + face, cy + face), fill=(250, 248, 240))
    for hour in range(12):
        turn = math.tau * hour / 12
        x, y = math.sin(turn), math.cos(turn)
        draw.line(
            (cx + 0.66 * r * x, cy + 0.66 * r * y, cx + 0.76 * r * x, cy + 0.76 * r * y),
            fill=(40, 40, 40),
            width=s // 50,
        )
    for length, width in ((0.4, 26), (0.6, 36)):
        turn = rng.uniform(0, math.tau)
        draw.line(
            (cx, cy, cx + length * r * math.sin(turn), cy - length * r * math.cos(turn)),
            fill=(20, 20, 20),
            width=s // width,
        )


def _draw_bell(draw: ImageDraw.ImageDraw, s: int, rng: Generator) -> None:
    gold = _shade((235, 180, 50), rng.uniform(0.75, 1.08))
    dark = _shade(gold, 0.65)
    slope = rng.uniform(2.2, 3.2)
    top, rim = 0.16, 0.82
    right = [(0.5 + 0.14 + 0.24 * t**slope, top + (rim - top) * t) for t in np.linspace(0, 1, 24)]
    left = [(1 - x, y) for x, y in reversed(right)]
    draw.ellipse((0.43 * s, 0.03 * s, 0.57 * s, 0.19 * s), outline=dark, width=s // 28)
    draw.ellipse((0.42 * s, 0.78 * s, 0.58 * s, 0.96 * s), fill=dark)
    draw.ellipse((0.36 * s, 0.1 * s, 0.64 * s, 0.36 * s), fill=gold)
    draw.polygon([(x * s, y * s) for x, y in right + left], fill=gold)
    draw.rounded_rectangle((0.1 * s, 0.78 * s, 0.9 * s, 0.86 * s), radius=0.04 * s, fill=dark)
    draw.line((0.4 * s, 0.28 * s, 0.32 * s, 0.7 * s), fill=_shade(gold, 1.4), width=s // 22)


def _draw_whistle(draw: ImageDraw.ImageDraw, s: int, rng: Generator) -> None:
    body = _colour(rng, 60)
    dark = _shade(body, 0.5)
    draw.rectangle((0.3 * s, 0.26 * s, 0.97 * s, 0.46 * s), fill=body)
    draw.rectangle((0.86 * s, 0.26 * s, 0.97 * s, 0.46 * s), fill=dark)
    draw.ellipse((0.06 * s, 0.26 * s, 0.64 * s, 0.84 * s), fill=body)
    draw.polygon([(0.46 * s, 0.25 * s), (0.6 * s, 0.25 * s), (0.5 * s, 0.38 * s)], fill=(15, 15, 15))
    draw.ellipse((0.22 * s, 0.42 * s, 0.48 * s, 0.68 * s), fill=dark)
    draw.ellipse((0.28 * s, 0.48 * s, 0.42 * s, 0.62 * s), fill=_shade(body, 1.3))
    draw.ellipse((0.0, 0.62 * s, 0.2 * s, 0.82 * s), outline=(120, 120, 125), width=s // 30)


def _draw_rain(draw: ImageDraw.ImageDraw, s: int, rng: Generator) -> None:
    grey = int(rng.integers(95, 190))
    cloud = (grey, grey, min(255, grey + 18))
    for x, y, r in ((0.22, 0.3, 0.17), (0.42, 0.22, 0.2), (0.63, 0.24, 0.18), (0.8, 0.32, 0.15)):
        draw.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), fill=cloud)
    draw.rounded_rectangle((0.06 * s, 0.28 * s, 0.94 * s, 0.47 * s), radius=0.09 * s, fill=cloud)
    blue = _shade((60, 125, 235), rng.uniform(0.8, 1.1))
    slant = rng.uniform(-0.08, 0.02)
    for row in range(3):
        for column in range(5):
            x = 0.14 + 0.17 * column + 0.06 * (row % 2) + rng.uniform(-0.02, 0.02)
            y = 0.53 + 0.16 * row + rng.uniform(-0.02, 0.02)
            draw.line((x * s, y * s, (x + slant) * s, (y + 0.1) * s), fill=blue, width=s // 32)


# Recordings: each returns a waveform (samples,) whose loudest sample is about 1.


def _envelope(samples: int, rate: int, attack: float, release: float) -> np.ndarray:
    """A ramp up over `attack` seconds and a ramp down over `release` seconds, shape (samples,)."""
    t = np.arange(samples) / rate
    return np.clip(np.minimum(t / attack, (samples / rate - t) / release), 0, 1)


def _synthesise_alarm_clock(samples: int, rate: int, rng: Generator) -> np.ndarray:
    out = np.zeros(samples)
    pitch = rng.uniform(1700, 3000)
    beep, gap = rng.uniform(0.06, 0.13), rng.uniform(0.04, 0.08)
    count, pause = int(rng.integers(2, 6)), rng.uniform(0.25, 0.6)
    harmonics = rng.uniform(0.0, 0.5, 3)
    start = rng.uniform(0, 0.3)
    while start * rate < samples:
        for _ in range(count):
            begin = int(start * rate)
            t = np.arange(min(int(beep * rate), max(0, samples - begin))) / rate
            wave = np.sin(math.tau * pitch * t)
            for order, weight in zip((2, 3, 5), harmonics, strict=True):
                if order * pitch < rate / 2:
                    wave = wave + weight * np.sin(math.tau * order * pitch * t)
            out[begin : begin + len(t)] += wave * _envelope(len(t), rate, 0.004, 0.006)
            start += beep + gap
        start += pause
    return out


def _synthesise_bell(samples: int, rate: int, rng: Generator) -> np.ndarray:
    out = np.zeros(samples)
    pitch = rng.uniform(260, 620)  # of the strike note
    partials = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 2.66, 3.01, 4.1, 5.4]) * rng.normal(1, 0.004, 10)
    weights = rng.uniform(0.4, 1.0, 10) / np.arange(1, 11) ** 0.6
    decay = rng.uniform(1.2, 2.6)
    period, start = rng.uniform(0.9, 1.8), rng.uniform(0, 0.25)
    while start * rate < samples:
        begin = int(start * rate)
        t = np.arange(samples - begin) / rate
        for partial, weight in zip(partials, weights, strict=True):
            fading = np.exp(-t * (0.6 + 0.5 * partial) / decay)
            out[begin:] += weight * fading * np.sin(math.tau * pitch * partial * t + rng.uniform(0, math.tau))
        knock = np.exp(-t * 90) * rng.normal(0, 0.4, len(t))
        out[begin:] += knock
        start += period * rng.uniform(0.95, 1.05)
    return out


def _synthesise_whistle(samples: int, rate: int, rng: Generator) -> np.ndarray:
    out = np.zeros(samples)
    pitch, trill = rng.uniform(2300, 3300), rng.uniform(22, 42)
    start = rng.uniform(0, 0.25)
    while start * rate < samples:
        begin, length = int(start * rate), rng.uniform(0.35, 1.1)
        t = np.arange(min(int(length * rate), samples - begin)) / rate
        wobble = np.sin(math.tau * trill * t)
        phase = math.tau * np.cumsum(pitch * (1 + 0.025 * wobble)) / rate
        breath = rng.normal(0, 0.12, len(t))
        wave = (np.sin(phase) + 0.15 * np.sin(1.5 * phase) + breath) * (0.65 + 0.35 * wobble)
        out[begin : begin + len(t)] += wave * _envelope(len(t), rate, 0.03, 0.06)
        start += length + rng.uniform(0.12, 0.4)
    return out


def _synthesise_rain(samples: int, rate: int, rng: Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.normal(0, 1, samples))
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    low, high = rng.uniform(250, 700), rng.uniform(4500, 9000)
    spectrum *= (frequency / low) / (1 + (frequency / low) ** 2) ** 0.5 / (1 + (frequency / high) ** 2)
    noise = np.fft.irfft(spectrum, samples)
    out = noise / (np.abs(noise).max() + 1e-9) * 0.6
    for begin in rng.integers(0, samples, int(samples / rate * rng.uniform(30, 90))):
        t = np.arange(min(int(0.012 * rate), samples - begin)) / rate
        drop = np.sin(math.tau * rng.uniform(1200, 5500) * t) * np.exp(-t * rng.uniform(300, 800))
        out[begin : begin + len(t)] += rng.uniform(0.05, 0.4) * drop
    return out


_DRAWINGS: dict[str, Callable[[ImageDraw.ImageDraw, int, Generator], None]] = {
    "alarm clock": _draw_alarm_clock,
    "bell": _draw_bell,
    "whistle": _draw_whistle,
    "rain": _draw_rain,
}
_SOUNDS: dict[str, Callable[[int, int, Generator], np.ndarray]] = {
    "alarm clock": _synthesise_alarm_clock,
    "bell": _synthesise_bell,
    "whistle": _synthesise_whistle,
    "rain": _synthesise_rain,
}
DRAWN_KINDS: tuple[str, ...] = tuple(_DRAWINGS)


def _known(kind: str) -> str:
    if kind not in _DRAWINGS:
        raise ValueError(
            f"the library cannot draw or synthesise {kind!r}; it knows: {', '.join(DRAWN_KINDS)}"
        )
    return kind


def phrase(kind: str) -> str:
    """A kind as in a sentence: "a dog", "an owl", "rain"."""
    if kind == "rain":
        return kind
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def draw(kind: str, size: int, rng: Generator) -> Image.Image:
    """Draw one thing as a cut-out: RGBA, `size` x `size` pixels, transparent around it."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    _DRAWINGS[_known(kind)](ImageDraw.Draw(canvas), side, rng)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def synthesise(kind: str, seconds: float, sampling_rate: int, rng: Generator) -> np.ndarray:
    """Synthesise the sound of a thing.

    Args:
        kind: one of the `DRAWN_KINDS`.
        seconds: length of the sound.
        sampling_rate: sampling rate of the result in Hz.
        rng: source of the variation.

    Returns:
        float32, shape (samples,), in [-0.9, 0.9].

    Raises:
        ValueError: for an unknown kind.
    """
    samples = max(1, round(seconds * sampling_rate))
    wave = _SOUNDS[_known(kind)](samples, sampling_rate, rng)
    return (0.9 * wave / max(1e-9, float(np.abs(wave).max()))).astype(np.float32)


def _background(size: int, rng: Generator) -> Image.Image:
    """Draw a soft gradient with blotches, RGB, `size` x `size`."""
    corners = rng.uniform(40, 250, 3) + rng.uniform(-60, 60, (2, 2, 3))
    blotches = rng.normal(0, 12, (6, 6, 3))
    grid = np.kron(corners, np.ones((3, 3, 1))) + blotches
    small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def compose(cutouts: Sequence[Image.Image], size: int, rng: Generator) -> tuple[Image.Image, np.ndarray]:
    """Put cut-out things side by side in front of a background.

    Args:
        cutouts: RGBA pictures of any size.
        size: width and height of the scene in pixels.
        rng: source of the places, sizes, tilts and colours.

    Returns:
        The scene (RGB), and the share of each pixel that each thing covers: float32, shape
        (len(cutouts), size, size).
    """
    scene = _background(size, rng)
    cover = np.zeros((len(cutouts), size, size), np.float32)
    columns = max(1, len(cutouts))
    for place, index in enumerate(rng.permutation(len(cutouts))):
        cutout = cutouts[index]
        room = size if columns == 1 else size * {2: 0.62, 3: 0.46}.get(columns, 1.2 / columns)
        largest = room * rng.uniform(0.72 if columns == 1 else 0.84, 1.0)
        scale = largest / max(cutout.size)
        thing = cutout.resize(
            [max(1, round(side * scale)) for side in cutout.size], Image.Resampling.BILINEAR
        )
        if rng.random() < 0.5:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        thing = thing.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
        x = (place + 0.5) / columns * size - thing.width / 2 + rng.uniform(-0.05, 0.05) * size
        y = rng.uniform(-0.04, 1.04) * max(0, size - thing.height) + min(0, size - thing.height) / 2
        corner = (round(np.clip(x, min(0, size - thing.width), max(0, size - thing.width))), round(y))
        scene.paste(thing, corner, thing)
        mask = Image.new("L", (size, size), 0)
        mask.paste(thing.getchannel("A"), corner)
        alpha = np.asarray(mask, np.float32) / 255
        cover *= 1 - alpha
        cover[index] = alpha
    return scene, cover


def make_scene(kinds: str | Sequence[str], size: int, rng: Generator) -> Image.Image:
    """Draw a picture of one or more of the `DRAWN_KINDS`, RGB, `size` x `size`."""
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    return compose([draw(kind, size, rng) for kind in names], size, rng)[0]


def make_clip(
    path: str | Path, *, picture: str | Sequence[str], sound: str, seconds: float = 3, seed: int = 0
) -> Path:
    """Write a short video: a drawn picture with a synthesised sound.

    Args:
        path: the `.mp4` file to write.
        picture: one or more of the `DRAWN_KINDS`, shown throughout.
        sound: one of the `DRAWN_KINDS`, heard throughout; the picture need not show it.
        seconds: length of the video in seconds.
        seed: random seed of the drawing and the recording.

    Returns:
        The path.

    Raises:
        ValueError: for an unknown kind.
    """
    import av

    rng = np.random.default_rng(seed)
    scene = make_scene(picture, CLIP_SIZE, rng)
    wave = synthesise(sound, seconds, CLIP_RATE, rng)
    path = Path(path)
    with av.open(str(path), "w") as video:
        pictures = video.add_stream("h264" if "libx264" in av.codecs_available else "mpeg4", rate=CLIP_FPS)
        pictures.width, pictures.height, pictures.pix_fmt = CLIP_SIZE, CLIP_SIZE, "yuv420p"
        pictures.bit_rate = 400_000
        sounds = video.add_stream("aac", rate=CLIP_RATE, layout="mono")
        sounds.bit_rate = 96_000
        for _ in range(max(1, round(seconds * CLIP_FPS))):
            video.mux(pictures.encode(av.VideoFrame.from_image(scene)))
        video.mux(pictures.encode())
        block = sounds.codec_context.frame_size or 1024
        for start in range(0, len(wave), block):
            frame = av.AudioFrame.from_ndarray(
                wave[None, start : start + block], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = CLIP_RATE, start, Fraction(1, CLIP_RATE)
            video.mux(sounds.encode(frame))
        video.mux(sounds.encode())
    return path
