"""Imitations of the kinds' sounds, to train on in addition to the few recordings of each.

A kind has one to four recordings, too few to learn what all dogs have in common. These are rough syntheses with wide
ranges of pitch, formants and rhythm. They are for training only; nothing is measured on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from llava_soundclip.demo.kinds import synthesise

RATE = 16_000  # Hz
TOP = 7_600  # Hz; nothing above it is synthesised


def line(points: Sequence[float], samples: int) -> np.ndarray:
    """A smooth line through points at equal distances: shape (samples,)."""
    curve = np.interp(np.linspace(0, len(points) - 1, samples), np.arange(len(points)), points)
    width = max(1, samples // (4 * len(points)))
    padded = np.pad(curve, width, mode="edge")
    return np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), "valid")


def ramp(samples: int, attack: float, release: float) -> np.ndarray:
    """Rise over `attack` seconds and fall over `release`, shape (samples,)."""
    t = np.arange(samples) / RATE
    return np.clip(np.minimum(t / attack, (samples / RATE - t) / release), 0, 1)


def hiss(samples: int, low: float, high: float, rng: Generator) -> np.ndarray:
    """Noise between two frequencies in Hz, with standard deviation 1: shape (samples,)."""
    spectrum = np.fft.rfft(rng.normal(0, 1, samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum /= (1 + (low / np.maximum(frequency, 1)) ** 4) * (1 + (frequency / high) ** 4)
    noise = np.fft.irfft(spectrum, samples)
    return noise / max(1e-9, float(noise.std()))


def voice(
    seconds: float,
    pitch: Sequence[float],
    formants: Sequence[tuple[float, float]],
    rng: Generator,
    *,
    tilt: float = 0.7,
    noise: float = 0.1,
    rough: tuple[float, float] = (0.0, 0.0),
    trill: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """One call of a throat: harmonics through two or three formants.

    Args:
        seconds: length.
        pitch: pitches in Hz, at equal distances in time.
        formants: frequencies in Hz, at the beginning and at the end of the call.
        rng: source of the random choices.
        tilt: decay of the harmonics, as a power of frequency.
        noise: level of breath relative to the harmonics.
        rough: rate in Hz and depth of an irregular beat.
        trill: rate in Hz and depth of a regular one, in loudness and pitch.

    Returns:
        Shape (samples,), scaled so that the loudest sample is 1.
    """
    samples = max(160, int(seconds * RATE))
    t = np.arange(samples) / RATE
    wobble = np.sin(math.tau * trill[0] * t + rng.uniform(0, math.tau))
    f0 = line(pitch, samples) * (1 + 0.06 * trill[1] * wobble) * (1 + 0.01 * hiss(samples, 2, 40, rng))
    phase = math.tau * np.cumsum(f0) / RATE
    tracks = [(line(ends, samples), rng.uniform(0.08, 0.25)) for ends in formants]
    out = np.zeros(samples)
    for order in range(1, 1 + min(45, int(TOP / f0.min()))):
        frequency = order * f0
        gain = sum(1 / (1 + ((frequency - centre) / (width * centre)) ** 2) for centre, width in tracks)
        out += (frequency < TOP) * (0.03 + gain) * order**-tilt * np.sin(order * phase)
    centre = float(np.mean([track.mean() for track, _ in tracks]))
    out = out / max(1e-9, float(out.std())) + noise * hiss(samples, 0.4 * centre, 2.2 * centre, rng)
    beat = 0.5 + 0.5 * np.sin(math.tau * rough[0] * t + 1.5 * hiss(samples, 1, 30, rng))
    out *= (1 - rough[1] * beat) * (1 - trill[1] * (0.5 + 0.5 * wobble))
    out *= ramp(samples, rng.uniform(0.01, 0.05), min(0.4 * seconds, rng.uniform(0.04, 0.2)))
    return out / max(1e-9, float(np.abs(out).max()))


def line_up(
    seconds: float, call: Callable[[], np.ndarray], gap: tuple[float, float], rng: Generator
) -> np.ndarray:
    """Repeat a call with pauses of `gap` seconds: shape (seconds * RATE,)."""
    out = np.zeros(int(seconds * RATE))
    at = int(rng.uniform(0, 0.3) * RATE)
    while at < len(out):
        sound = call()[: len(out) - at] * rng.uniform(0.7, 1)
        out[at : at + len(sound)] += sound
        at += len(sound) + int(rng.uniform(*gap) * RATE)
    return out


def _pitch(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def dog(seconds: float, rng: Generator) -> np.ndarray:
    base, a, b = _pitch(rng, 180, 800), rng.uniform(500, 1300), rng.uniform(1500, 3000)
    length, rough, noise = rng.uniform(0.09, 0.3), rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.9)

    def bark() -> np.ndarray:
        top = base * rng.uniform(0.85, 1.15)
        contour = [0.6 * top, top, 0.95 * top, 0.6 * top]
        shape = [(a, 0.8 * a), (b, 0.9 * b)]
        return voice(length, contour, shape, rng, noise=noise, rough=(rng.uniform(50, 140), rough))

    return line_up(seconds, bark, (0.06, rng.uniform(0.15, 1.0)), rng)


def cat(seconds: float, rng: Generator) -> np.ndarray:
    base = _pitch(rng, 320, 850)

    def meow() -> np.ndarray:
        contour = base * np.array(
            [rng.uniform(0.7, 0.95), 1.0, rng.uniform(1.0, 1.35), rng.uniform(0.6, 0.95)]
        )
        shape = [
            (rng.uniform(600, 900), rng.uniform(900, 1400)),
            (rng.uniform(2200, 3000), rng.uniform(1400, 2000)),
        ]
        return voice(rng.uniform(0.4, 1.4), list(contour), shape, rng, noise=rng.uniform(0, 0.2), tilt=0.5)

    return line_up(seconds, meow, (0.2, 1.3), rng)


def cow(seconds: float, rng: Generator) -> np.ndarray:
    base = _pitch(rng, 75, 220)

    def moo() -> np.ndarray:
        contour = base * np.array([0.75, 1, rng.uniform(1, 1.3), rng.uniform(1, 1.4), rng.uniform(0.7, 1)])
        shape = [
            (rng.uniform(220, 400), rng.uniform(450, 800)),
            (rng.uniform(700, 1000), rng.uniform(1000, 1700)),
        ]
        rough = (rng.uniform(15, 50), rng.uniform(0, 0.3))
        return voice(
            rng.uniform(0.9, 2.6), list(contour), shape, rng, rough=rough, tilt=rng.uniform(0.4, 0.9)
        )

    return line_up(seconds, moo, (0.3, 1.5), rng)


def horse(seconds: float, rng: Generator) -> np.ndarray:
    base = _pitch(rng, 450, 1200)

    def neigh() -> np.ndarray:
        contour = base * np.array([0.7, 1, rng.uniform(0.9, 1.1), 0.75, rng.uniform(0.3, 0.5)])
        shape = [
            (rng.uniform(900, 1500), rng.uniform(700, 1200)),
            (rng.uniform(2200, 3200), rng.uniform(1800, 2600)),
        ]
        trill = (rng.uniform(7, 16), rng.uniform(0.3, 0.8))
        return voice(
            rng.uniform(0.9, 2.3), list(contour), shape, rng, noise=rng.uniform(0.1, 0.5), trill=trill
        )

    return line_up(seconds, neigh, (0.3, 1.5), rng)


def sheep(seconds: float, rng: Generator) -> np.ndarray:
    base, rate = _pitch(rng, 140, 480), rng.uniform(6, 14)

    def bleat() -> np.ndarray:
        contour = base * np.array([0.85, 1, 1, rng.uniform(0.75, 0.95)])
        shape = [
            (rng.uniform(600, 900), rng.uniform(700, 1100)),
            (rng.uniform(1600, 2600), rng.uniform(1600, 2600)),
        ]
        trill = (rate * rng.uniform(0.9, 1.1), rng.uniform(0.4, 0.8))
        return voice(
            rng.uniform(0.4, 1.3),
            list(contour),
            shape,
            rng,
            noise=rng.uniform(0.05, 0.4),
            trill=trill,
            tilt=0.4,
        )

    return line_up(seconds, bleat, (0.2, 1.3), rng)


def duck(seconds: float, rng: Generator) -> np.ndarray:
    base, length = _pitch(rng, 160, 420), rng.uniform(0.1, 0.3)
    shape = [
        (rng.uniform(900, 1500), rng.uniform(900, 1300)),
        (rng.uniform(2200, 3200), rng.uniform(2000, 3000)),
    ]

    def quack() -> np.ndarray:
        rough = (base / 2, rng.uniform(0.2, 0.6))
        return voice(
            length,
            [base, 1.1 * base, 0.8 * base],
            shape,
            rng,
            noise=rng.uniform(0.1, 0.5),
            rough=rough,
            tilt=0.2,
        )

    return line_up(seconds, quack, (0.05, rng.uniform(0.1, 0.4)), rng)


def rooster(seconds: float, rng: Generator) -> np.ndarray:
    base = _pitch(rng, 450, 950)

    def crow() -> np.ndarray:
        notes = []
        for length, start, end in ((0.2, 0.6, 0.8), (0.15, 0.9, 0.85), (0.35, 0.9, 1.15), (1.0, 1.2, 0.7)):
            contour = [base * start, base * (start + end) / 2 * rng.uniform(1, 1.1), base * end]
            shape = [(rng.uniform(1000, 1500), rng.uniform(1200, 1800)), (2600, 2900)]
            notes.append(
                voice(
                    length * rng.uniform(0.7, 1.3), contour, shape, rng, noise=0.2, rough=(60, 0.3), tilt=0.4
                )
            )
        return np.concatenate(notes)

    return line_up(seconds, crow, (0.4, 2.0), rng)


def frog(seconds: float, rng: Generator) -> np.ndarray:
    out = np.zeros(int(seconds * RATE))
    for _ in range(int(rng.integers(1, 5))):
        carrier, rate = _pitch(rng, 400, 2600), _pitch(rng, 14, 70)
        length, gap = rng.uniform(0.15, 0.7), rng.uniform(0.1, 0.9)

        def croak(carrier: float = carrier, rate: float = rate, length: float = length) -> np.ndarray:
            pitch = [0.9 * rate, rate, rng.uniform(0.9, 1.3) * rate]
            shape = [(carrier, carrier * rng.uniform(0.9, 1.2)), (2.1 * carrier, 2.2 * carrier)]
            return voice(length, pitch, shape, rng, tilt=0.0, noise=rng.uniform(0.05, 0.3))

        out += rng.uniform(0.3, 1) * line_up(seconds, croak, (0.3 * gap, gap), rng)
    return out


def bird(seconds: float, rng: Generator) -> np.ndarray:
    out = np.zeros(int(seconds * RATE))
    for _ in range(int(rng.integers(1, 4))):
        centre = _pitch(rng, 1900, 5500)
        motif = [
            (
                rng.uniform(0.03, 0.22),
                centre * rng.uniform(0.75, 1.25, int(rng.integers(2, 5))),
                rng.uniform(0.01, 0.1),
            )
            for _ in range(int(rng.integers(1, 6)))
        ]

        def song(motif: list = motif) -> np.ndarray:
            notes = []
            for length, points, pause in motif:
                samples = int(length * RATE)
                tone = np.sin(math.tau * np.cumsum(np.minimum(line(points, samples), TOP)) / RATE)
                notes += [tone * ramp(samples, 0.008, 0.015), np.zeros(int(pause * RATE))]
            return np.concatenate(notes)

        out += rng.uniform(0.3, 1) * line_up(seconds, song, (0.02, rng.uniform(0.1, 1.0)), rng)
    return out


def _melody(seconds: float, low: float, high: float, rng: Generator) -> list[tuple[float, float]]:
    """Notes of a scale: pitches in Hz and lengths in seconds."""
    root, pace, notes, spent = _pitch(rng, low, high), rng.uniform(0.12, 0.9), [], 0.0
    while spent < seconds:
        step = int(rng.choice([0, 2, 4, 5, 7, 9, 11, 12]))
        notes.append((root * 2 ** (step / 12), pace * float(rng.choice([0.5, 1, 1, 2]))))
        spent += notes[-1][1]
    return notes


def violin(seconds: float, rng: Generator) -> np.ndarray:
    body = [(rng.uniform(*span),) * 2 for span in ((350, 600), (900, 1500), (2200, 3400))]
    vibrato = (rng.uniform(4.5, 7), rng.uniform(0.05, 0.25))
    notes = [
        voice(
            length + 0.05, [pitch, pitch], body, rng, trill=vibrato, noise=rng.uniform(0.02, 0.15), tilt=0.8
        )
        for pitch, length in _melody(seconds, 190, 800, rng)
    ]
    return np.concatenate(notes)


def guitar(seconds: float, rng: Generator) -> np.ndarray:
    out, at = np.zeros(int((seconds + 1) * RATE)), 0.0
    damping, bright, chords = rng.uniform(0.3, 1.2), rng.uniform(0.5, 1.2), rng.random() < 0.4
    for pitch, length in _melody(seconds, 80, 350, rng):
        for interval in (1, 1.26, 1.5, 2) if chords else (1,):
            begin = int((at + rng.uniform(0, 0.03)) * RATE)
            t = np.arange(max(0, min(len(out) - begin, int(2 * RATE)))) / RATE
            for order in range(1, 18):
                if (frequency := order * pitch * interval) < TOP:
                    fading = np.exp(-t * (1.0 + 0.4 * order) / damping)
                    out[begin : begin + len(t)] += (
                        order**-bright * fading * np.sin(math.tau * frequency * t + order)
                    )
        at += length
    out = out[: int(seconds * RATE)]
    return np.tanh(rng.uniform(2, 12) * out / np.abs(out).max()) if rng.random() < 0.3 else out


def drum(seconds: float, rng: Generator) -> np.ndarray:
    out, step = np.zeros(int(seconds * RATE)), 60 / rng.uniform(80, 180) / 4
    pattern = {
        name: rng.random(16) < share
        for name, share in (("kick", 0.3), ("snare", 0.25), ("hat", 0.5), ("tom", 0.2))
    }
    pattern["kick"][0] = pattern["snare"][4] = True
    for name in rng.choice(list(pattern), int(rng.integers(0, 3)), replace=False):
        pattern[name][:] = False
    low, skin, length = rng.uniform(45, 100), rng.uniform(90, 260), rng.uniform(0.08, 0.3)
    for index in range(int(seconds / step)):
        begin = int(index * step * RATE)
        t = np.arange(min(int(0.5 * RATE), len(out) - begin)) / RATE
        hit = np.zeros(len(t))
        if pattern["kick"][index % 16]:
            hit += np.sin(math.tau * low * (t + 0.03 * (1 - np.exp(-t * 40)))) * np.exp(-t / length)
        if pattern["tom"][index % 16]:
            hit += 0.8 * np.sin(math.tau * skin * (t + 0.01 * (1 - np.exp(-t * 30)))) * np.exp(-t / length)
        if len(t) > 100 and pattern["snare"][index % 16]:
            hit += 0.7 * (0.3 * hiss(len(t), 800, 6000, rng) + np.sin(math.tau * 190 * t)) * np.exp(-t / 0.09)
        if len(t) > 100 and pattern["hat"][index % 16]:
            hit += 0.15 * hiss(len(t), 5000, 8000, rng) * np.exp(-t / rng.uniform(0.02, 0.1))
        out[begin : begin + len(t)] += hit * rng.uniform(0.6, 1)
    return out + 1e-4 * rng.normal(0, 1, len(out))


def fire_truck(seconds: float, rng: Generator) -> np.ndarray:
    samples = int(seconds * RATE)
    t, form = np.arange(samples) / RATE, rng.random()
    low, high = rng.uniform(380, 750), rng.uniform(950, 1700)
    if form < 0.45:  # a wail
        period = rng.uniform(2, 7)
        f0 = low + (high - low) * (0.5 - 0.5 * np.cos(math.tau * (t / period + rng.random()))) ** rng.uniform(
            0.6, 1.4
        )
    elif form < 0.65:  # a yelp
        f0 = low + (high - low) * ((t * rng.uniform(2.2, 4.5) + rng.random()) % 1) ** rng.uniform(0.7, 1.3)
    else:  # two tones
        tones = low * np.array([1, rng.uniform(1.15, 1.5)])
        f0 = tones[((t / rng.uniform(0.3, 0.9) + rng.random()) % 2).astype(int)]
    f0 = f0 * rng.uniform(0.94, 1.06) * line([rng.uniform(0.96, 1.04), rng.uniform(0.96, 1.04)], samples)
    phase, fall = math.tau * np.cumsum(f0) / RATE, rng.uniform(0.6, 1.8)
    out = sum(order**-fall * (order * f0 < TOP) * np.sin(order * phase) for order in range(1, 9))
    out *= line(rng.uniform(0.4, 1, 4), samples)
    return out + rng.uniform(0, 0.5) * hiss(samples, 60, rng.uniform(300, 2000), rng)


def car(seconds: float, rng: Generator) -> np.ndarray:
    samples = int(seconds * RATE)
    if rng.random() < 0.15:  # its horn
        base = _pitch(rng, 330, 520)

        def horn() -> np.ndarray:
            tones = [
                voice(0.6, [f, f], [(900, 900), (2400, 2400)], rng, tilt=0.3, noise=0.02)
                for f in (base, 1.24 * base)
            ]
            return sum(tones)[: int(rng.uniform(0.15, 0.6) * RATE)]

        return line_up(seconds, horn, (0.1, 0.9), rng)
    revs = _pitch(rng, 18, 90) * np.array([1.0, *rng.uniform(0.8, rng.uniform(1.1, 2.6), 4)])
    f0 = line(list(revs), samples) * (1 + 0.01 * hiss(samples, 2, 20, rng))
    phase, beats, fall = math.tau * np.cumsum(f0) / RATE, int(rng.choice([2, 3, 4])), rng.uniform(0.5, 1.2)
    out = np.zeros(samples)
    for order in range(1, 60):
        weight = order**-fall * (1.6 if order % beats == 0 else rng.uniform(0.2, 0.8))
        out += weight * (order * f0 < TOP) * np.sin(order * phase + rng.uniform(0, math.tau))
    out = out / out.std() * (1 + rng.uniform(0, 0.5) * np.sin(phase / 2))
    out += rng.uniform(0.2, 1.5) * hiss(samples, 40, _pitch(rng, 300, 4000), rng)
    if rng.random() < 0.3:  # it starts
        turning = int(rng.uniform(0.4, 1.2) * RATE)
        t = np.arange(min(turning, samples)) / RATE
        out[: len(t)] = hiss(len(t), 150, 2500, rng) * (0.5 + 0.5 * np.sin(math.tau * rng.uniform(7, 13) * t))
    return out * line(rng.uniform(0.3, 1, 4), samples)


def alarm_clock(seconds: float, rng: Generator) -> np.ndarray:
    if rng.random() < 0.6:
        return synthesise("alarm clock", seconds, RATE, rng)
    samples = int(seconds * RATE)  # a hammer between two small bells
    out, rate, partials = (
        np.zeros(samples),
        rng.uniform(14, 32),
        _pitch(rng, 1200, 3200) * np.array([1, 1.5, 2.1, 2.8]),
    )
    for begin in (np.arange(0, seconds, 1 / rate) * RATE).astype(int):
        t = np.arange(min(int(0.25 * RATE), samples - begin)) / RATE
        ring = sum(np.sin(math.tau * f * rng.uniform(0.999, 1.001) * t) for f in partials if f < TOP)
        out[begin : begin + len(t)] += ring * np.exp(-t * rng.uniform(12, 30)) * rng.uniform(0.7, 1)
    return out


def bell(seconds: float, rng: Generator) -> np.ndarray:
    if rng.random() < 0.5:
        return synthesise("bell", seconds, RATE, rng)
    samples = int(seconds * RATE)  # a peal: several bells, each with its own time
    out = np.zeros(samples)
    hum = _pitch(rng, 110, 420)
    for pitch in hum * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12], int(rng.integers(1, 5)), replace=False) / 12):
        at, period, ring = rng.uniform(-0.8, 0.6), rng.uniform(0.7, 2.5), rng.uniform(1.5, 5)
        partials = np.array([1, 2, 2.4, 3, 4, 5.33, 6.6, 8]) * rng.normal(1, 0.006, 8)
        weights = rng.uniform(0.2, 1, 8) / np.arange(1, 9) ** 0.4
        while at < seconds:
            t = np.arange(samples) / RATE - at
            sounding = t > 0
            for partial, weight in zip(partials, weights, strict=True):
                if pitch * partial < TOP:
                    fading = np.exp(-np.maximum(t, 0) * (0.5 + 0.25 * partial) / ring * 2)
                    out += sounding * weight * fading * np.sin(math.tau * pitch * partial * t)
            at += period * rng.uniform(0.95, 1.05)
    return out


VOICES: dict[str, Callable[[float, Generator], np.ndarray]] = {
    "dog": dog,
    "cat": cat,
    "cow": cow,
    "horse": horse,
    "sheep": sheep,
    "duck": duck,
    "rooster": rooster,
    "frog": frog,
    "bird": bird,
    "violin": violin,
    "guitar": guitar,
    "drum": drum,
    "fire truck": fire_truck,
    "car": car,
    "alarm clock": alarm_clock,
    "bell": bell,
    "whistle": lambda seconds, rng: synthesise("whistle", seconds, RATE, rng),
    "rain": lambda seconds, rng: synthesise("rain", seconds, RATE, rng),
}


def imitate(kind: str, seconds: float, rng: Generator) -> np.ndarray:
    """Imitate a kind's sound: float32, shape (seconds * RATE,), scaled so that the loudest sample is 1."""
    wave = VOICES[kind](seconds, rng)[: int(seconds * RATE)]
    return (wave / max(1e-9, float(np.abs(wave).max()))).astype(np.float32)
