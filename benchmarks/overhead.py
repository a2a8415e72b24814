"""Time that a sound adds to LLaVA-1.5-7B's prefill: alignment and substitution against tower and language model.

    python benchmarks/overhead.py

Full-size random weights: CLIP ViT-L/14 at 336 px, the mm_projector, and one layer of a 7B LLaMA. The layer's time is
multiplied by 32; embedding and head are left out, to our disadvantage. A sound is 768 wide, like Whisper-small's. All
parts are timed in one run, interleaved. The audio encoder is not included: see benchmarks/whisper_window.py. The goal
is below 1 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from full_size import LAYERS, build_llm, build_mm_projector, build_tower

from llava_soundclip import AudioTokenSubstituter, Projector, RawPad

WORDS = 40  # text tokens beside the image


def build(dtype: torch.dtype, device: str) -> list[torch.nn.Module]:
    parts = build_tower(), build_mm_projector(), build_llm(layers=1)
    return [part.to(device, dtype).eval() for part in parts]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is far slower on most CPUs")
    options = parser.parse_args()
    device, dtype = options.device, getattr(torch, options.dtype)
    tower, mm_projector, llm = build(dtype, device)
    images = torch.randn(options.batch, 3, 336, 336, device=device, dtype=dtype)
    tokens = torch.randn(options.batch, 577, 1024, device=device, dtype=dtype)
    words = torch.randn(options.batch, 577 + WORDS, 4096, device=device, dtype=dtype)
    sound = torch.randn(options.batch, 768, device=device)
    raw, projector = RawPad(1024), Projector(768, 1024).to(device).eval()
    parts: dict[str, Callable[[], object]] = {
        "tower": lambda: tower(images, output_hidden_states=True),
        "mm_projector": lambda: mm_projector(tokens),
        "language model, a layer": lambda: llm(inputs_embeds=words, use_cache=True),
    }
    for k in (15, 150):
        substituter = AudioTokenSubstituter(k)
        parts[f"raw, k={k}"] = lambda s=substituter: s(tokens, raw(sound))
        parts[f"projected, k={k}"] = lambda s=substituter: s(tokens, projector(sound))
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds + 1):  # the first round warms up and isn't counted
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    stock = median["tower"] + median["mm_projector"] + LAYERS * median["language model, a layer"]
    print(f"{device}, {options.dtype}, batch {options.batch}, {torch.get_num_threads()} threads")
    for name, value in median.items():
        print(f"{name:26} {value:10.2f} ms")
    print(f"{'stock prefill, scaled':26} {stock:10.2f} ms")
    for name in list(parts)[3:]:
        print(f"{name:26} {100 * median[name] / stock:10.3f} % of it")


if __name__ == "__main__":
    main()
