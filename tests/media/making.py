"""Films and sounds of known content, made with PyAV."""

import heapq
import io
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS = 10
GREY_STEP = 8  # how much brighter each frame of a film is than the one before

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# FFmpeg's display matrices: the pixel (p, q) is shown at (a p + c q, b p + d q).
MATRICES = {
    "as it is": (1, 0, 0, 1),
    "quarter turn clockwise": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "quarter turn counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def chirp(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """(channels, samples) float64: a sine that rises from 200 Hz by 300 Hz a second, quieter by channel."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * (200 * t + 150 * t**2))
    return np.stack([0.8 * wave / (1 + i) for i in range(channels)])


def to_format(waveform: np.ndarray, sample_format: str) -> np.ndarray:
    """Samples in one of FFmpeg's formats, still (channels, samples)."""
    kind = sample_format.removesuffix("p")
    if kind == "u8":
        return np.round(waveform * 127 + 128).astype(np.uint8)
    if kind in ("s16", "s32"):
        bits = int(kind[1:])
        return np.round(waveform * (2 ** (bits - 1) - 1)).astype(f"int{bits}")
    return waveform.astype({"flt": np.float32, "dbl": np.float64}[kind])


def audio_frames(
    samples: np.ndarray, sample_format: str, rate: int, *, size: int = 1024, first: int = 0
) -> Iterable[Any]:
    """Cut (channels, samples) into frames whose time stamps count samples from `first` on."""
    channels, total = samples.shape
    for at in range(0, total, size):
        part = samples[:, at : at + size]
        if not sample_format.endswith("p"):
            part = part.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), sample_format, LAYOUTS[channels])
        frame.sample_rate, frame.pts, frame.time_base = rate, first + at, Fraction(1, rate)
        yield frame


def picture_frames(count: int, size: tuple[int, int] = (64, 48), *, first: int = 0) -> Iterable[Any]:
    """`count` grey frames, each GREY_STEP brighter than the one before."""
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 16 + GREY_STEP * i, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts, frame.time_base = first + i, Fraction(1, FPS)
        yield frame


def write(
    path: Path | io.IOBase,
    *,
    container: str | None = None,
    sound: np.ndarray | None = None,
    sample_format: str = "s16",
    rate: int = 16_000,
    audio_codec: str = "pcm_s16le",
    audio_start: float = 0.0,
    pictures: Iterable[Any] | None = None,
    video_codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
) -> Any:
    """Encode (channels, samples) of one of FFmpeg's formats, or frames, or both. Returns `path`."""
    with av.open(str(path) if isinstance(path, Path) else path, "w", format=container) as output:
        audio = video = None
        if pictures is not None:
            video = output.add_stream(video_codec, rate=FPS)
            video.width, video.height = size
            video.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj444p", "gif": "rgb8"}.get(video_codec, "yuv420p")
            video.codec_context.options = options or {}
        if sound is not None:
            audio = output.add_stream(audio_codec, rate=rate, layout=LAYOUTS[len(sound)])
        sounds = (
            () if sound is None else audio_frames(sound, sample_format, rate, first=round(audio_start * rate))
        )
        both = heapq.merge(
            ((frame.time, 0, video, frame) for frame in pictures or ()),
            ((frame.time, 1, audio, frame) for frame in sounds),
            key=lambda item: item[:2],
        )
        for _, _, stream, frame in both:
            output.mux(stream.encode(frame))
        for stream in filter(None, (video, audio)):
            output.mux(stream.encode(None))
    return path


def film(path: Path, *, seconds: float = 2.0, channels: int = 2, **options: Any) -> Path:
    """A small film with a chirp."""
    sound = to_format(chirp(seconds, 16_000, channels), options.get("sample_format", "s16"))
    return write(path, sound=sound, pictures=picture_frames(round(seconds * FPS)), **options)


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into an mp4's first track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the nine numbers begin 40 bytes into the box
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_film(path: Path) -> Path:
    """A second of a rising tone, red at first and blue in the end."""
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for i in range(10):
            colour = np.zeros((48, 64, 3), np.uint8)
            colour[..., 0 if i < 5 else 2] = 200
            for packet in video.encode(av.VideoFrame.from_ndarray(colour)):
                container.mux(packet)
        samples = (np.sin(np.linspace(0, 60, 16_000) ** 2) * 20_000).astype("<i2")
        frame = av.AudioFrame.from_ndarray(samples[None], layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for packet in [*audio.encode(frame), *audio.encode(None), *video.encode(None)]:
            container.mux(packet)
    return path


def slow_chirp(begin, end, rate=48_000):
    """(1, samples): a part of a sine that rises from 200 Hz by 60 Hz per second."""
    t = np.arange(round(begin * rate), round(end * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * t + 30 * t**2))[None]


def two_tracks(path, default=0):
    """A film with a chirp, and with noise in stereo; both sounds are AAC."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [
            np.float32(slow_chirp(0, 2)),
            np.float32(0.1 * np.random.default_rng(0).standard_normal((2, 96_000))),
        ]
        streams = [output.add_stream("aac", rate=48_000, layout=layout) for layout in ("mono", "stereo")]
        streams[default].disposition = av.stream.Disposition.default
        for frame in picture_frames(20):
            output.mux(video.encode(frame))
        for stream, sound in zip(streams, sounds, strict=True):
            for frame in audio_frames(sound, "fltp", 48_000):
                output.mux(stream.encode(frame))
        for stream in (video, *streams):
            output.mux(stream.encode(None))
    return path


def break_codec(path, number):
    """Give the sound track of a .mov a codec that nobody knows."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(number + 2):  # the film's pictures come first
        at = data.index(b"stsd", at + 1)
    end = data.index(b"stts", at)
    for old, new in ((b"mp4a", b"zzzz"), (b"esds", b"zzzz"), (b"wave", b"free")):
        found = data.find(old, at, end)
        while found != -1:
            data[found : found + 4] = new
            found = data.find(old, found + 4, end)
    path.write_bytes(data)
