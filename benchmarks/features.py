"""Speed of feature extraction from videos, against a plain loop of decode, embed and tower, one video at a time.

    python benchmarks/features.py                          # Whisper tiny, CLIP ViT-B/32
    python benchmarks/features.py --whisper base --tower large --clips 8      # CLIP ViT-L/14 at 336 pixels
    python benchmarks/features.py --window padded

Weights are random and full-size. Videos last 3 s, 320 x 240 at 25 frames per second in H.264, with AAC stereo at
44.1 kHz. Three ways take turns on them, and a ratio is the median over the rounds:

- plain: the loop that a researcher writes. PyAV decodes and resamples the sound; openai-whisper pads it to 30 s and
  encodes it, with a hook on every block. PyAV decodes the video up to its middle frame, which goes through
  transformers' image processor and `CLIPVisionModel`.
- plain, our parts: the same loop with this library's encoder, window and picture preparation. Its distance to "ours"
  is the gain from batches and worker processes alone.
- ours: `extract_features`, from the first worker's start to the last file.

"by stage" is the time of each stage in seconds. For ours: decoding in the workers, which runs in parallel, then the
main process's wait for it, encoder, tower and writing. torch is imported inside functions, because workers import this
file again, like any script with its own `__main__`. The command's workers run without torch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from llava_soundclip.encoders import AudioEncoder
    from llava_soundclip.features import Clip, VisionTower

    Row = tuple[Tensor, Tensor]

WHISPERS = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}  # width, blocks, heads
TOWERS = {
    "base": {},  # the defaults are ViT-B/32 at 224 pixels
    "large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
SECONDS, FPS, SIZE, RATE = 3, 25, (320, 240), 44_100
GOAL = 3.0
Stages = Mapping[str, float]


def write_video(path: Path, seed: int) -> None:
    """Write a disc that moves over noise, with a tone over noise as its sound."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 80, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    tone = np.sin(2 * np.pi * rng.uniform(200, 2000) * np.arange(SECONDS * RATE) / RATE)
    sound = (0.3 * tone + 0.05 * rng.normal(size=(2, SECONDS * RATE))).astype(np.float32)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = output.add_stream("aac", rate=RATE, layout="stereo")
        for i in range(SECONDS * FPS):
            pixels = np.roll(ground, i, axis=1)
            pixels[(x - 4 * i) ** 2 + (y - 120) ** 2 < 900] = rng.integers(256, size=3)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            output.mux(video.encode(frame))
        for at in range(0, SECONDS * RATE, 1024):
            block = np.ascontiguousarray(sound[:, at : at + 1024])
            part = av.AudioFrame.from_ndarray(block, "fltp", "stereo")
            part.sample_rate, part.pts, part.time_base = RATE, at, Fraction(1, RATE)
            output.mux(audio.encode(part))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def build(folder: Path, options: argparse.Namespace) -> tuple[AudioEncoder, VisionTower]:
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        WhisperConfig,
        WhisperForConditionalGeneration,
    )

    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.features import VisionTower

    torch.manual_seed(0)
    width, blocks, heads = WHISPERS[options.whisper]
    config = WhisperConfig(
        d_model=width,
        encoder_layers=blocks,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder / "whisper")
    vision = CLIPVisionConfig(**TOWERS[options.tower])
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    side = vision.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder / "tower")
    encoder = load_encoder("whisperclip", checkpoint=folder / "whisper", window=options.window)
    return encoder, VisionTower.load(folder / "tower")


class Plain:
    """The loop that a researcher writes."""

    def __init__(self, folder: Path, whisper_size: str) -> None:
        from transformers import AutoImageProcessor, CLIPVisionModel
        from whisper.model import AudioEncoder as OpenAIEncoder

        width, blocks, heads = WHISPERS[whisper_size]
        self.whisper = OpenAIEncoder(80, 1500, width, heads, blocks).eval()
        self.states: list[Tensor] = []
        for block in self.whisper.blocks:
            block.register_forward_hook(lambda module, inputs, output: self.states.append(output))
        self.model = CLIPVisionModel.from_pretrained(folder).eval()
        self.processor = AutoImageProcessor.from_pretrained(folder)

    def __call__(self, clip: Clip, timed: Callable[[str], AbstractContextManager[None]]) -> Row:
        import torch
        import whisper

        with timed("decode"):
            resampler = av.AudioResampler("flt", "mono", 16_000)
            with av.open(clip.sound) as video:
                frames = [part for frame in video.decode(audio=0) for part in resampler.resample(frame)]
            frames += resampler.resample(None)
            sound = np.concatenate([frame.to_ndarray()[0] for frame in frames])
            with av.open(clip.sound) as video:
                middle = video.duration / 2e6
                picture = next(f for f in video.decode(video=0) if f.time >= middle).to_image()
            pixels = self.processor(picture, return_tensors="pt")["pixel_values"]
        with timed("encoder"):
            self.states.clear()
            self.whisper(whisper.log_mel_spectrogram(whisper.pad_or_trim(sound))[None])
            audio = torch.stack([state[0].mean(0) for state in self.states])
        with timed("tower"):
            cls = self.model(pixels, output_hidden_states=True).hidden_states[-2][0, 0]
        return audio, cls


class PlainWithOurParts:
    """The same loop with this library's encoder and picture preparation."""

    def __init__(self, encoder: AudioEncoder, tower: VisionTower) -> None:
        from llava_soundclip.features.decode import Decoder
        from llava_soundclip.features.pictures import prepare_like

        self.encoder, self.tower = encoder, tower
        self.decoder = Decoder(16_000, 1, prepare_like(tower.processor))

    def __call__(self, clip: Clip, timed: Callable[[str], AbstractContextManager[None]]) -> Row:
        import torch

        with timed("decode"):
            decoded = self.decoder(clip)
        with timed("encoder"):
            audio = self.encoder.layer_means([decoded.waveform], 16_000)[0]
        with timed("tower"):
            cls = self.tower.tokens(torch.from_numpy(decoded.pixels))[0, 0]
        return audio, cls


def one_by_one(make: Plain | PlainWithOurParts, clips: list[Clip], out: Path) -> Stages:
    import torch

    from llava_soundclip.features.embed import clock

    seconds: dict[str, float] = {}
    with torch.no_grad():
        rows = [make(clip, partial(clock, seconds)) for clip in clips]
    with clock(seconds, "write"):
        torch.save([torch.stack(column).half() for column in zip(*rows, strict=True)], out / "rows.pt")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--whisper", choices=WHISPERS, default="tiny")
    parser.add_argument("--tower", choices=TOWERS, default="base")
    parser.add_argument("--window", choices=("clip", "padded"), default="clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, help="worker processes; the default of extract_features if not given"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    from llava_soundclip.features import read_clips

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        for i in range(options.clips):
            write_video(folder / "videos" / f"{i:04}.mp4", i)
        compare(read_clips([str(folder / "videos")]), folder, options)


def compare(clips: list[Clip], folder: Path, options: argparse.Namespace) -> None:
    import torch

    from llava_soundclip.features import extract_features

    encoder, tower = build(folder, options)

    def ours(clips: list[Clip], out: Path) -> Stages:
        arguments = {"workers": options.workers, "batch_size": options.batch_size}
        return extract_features(clips, encoder, tower, out / "features", **arguments).seconds

    ways: dict[str, Callable[[list[Clip], Path], Stages]] = {
        "plain": partial(one_by_one, Plain(folder / "tower", options.whisper)),
        "plain, our parts": partial(one_by_one, PlainWithOurParts(encoder, tower)),
        "ours": ours,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    stages: dict[str, Stages] = {}
    for round in range(options.rounds + 1):
        for name, call in ways.items():
            with tempfile.TemporaryDirectory() as out:
                start = time.perf_counter()
                stages[name] = call(clips if round else clips[:8], Path(out))
                if round:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
    print(
        f"Whisper {options.whisper}, window {options.window}, CLIP {options.tower}; {len(clips)} videos of {SECONDS} s, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    )
    print(f"{'':18}{'clips/s':>9}{'ours/this':>11}   by stage")
    for name, seconds in times.items():
        ratio = statistics.median(this / our for this, our in zip(seconds, times["ours"], strict=True))
        parts = ", ".join(f"{stage} {spent:.2f}" for stage, spent in stages[name].items())
        print(f"{name:18}{len(clips) / statistics.median(seconds):9.2f}{ratio:10.2f}x   {parts}")
    print(f"goal: {GOAL:g}x plain")


if __name__ == "__main__":
    main()
