"""The checks that need a GPU, in under six minutes: the marked tests, then three benchmarks.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --tiny               # the same code on a CPU with tiny models, in seconds

1. The tests marked `gpu`.
2. The substitution alone at batch 1 (goal: 0.2 ms), on vision tokens of CLIP ViT-L/14 at 336 px.
3. Time to the first token of LLaVA-1.5-7B with random weights, through `generate`, stock and with a sound.
   The sound is encoded before the clock starts; projection and substitution are timed.
4. Clips per second of one audio encoder, Whisper-small with random weights.

Every figure is the median of several calls after a warm-up. The GPU is synchronised before each reading of the clock.
The JSON is written after each part, so an interrupted run keeps the parts that finished.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from full_size import IMAGE_TOKEN, build_llava
from prefill import PATCHES, WORDS, cache_bytes, seconds
from whisper_window import SIZES, build_encoder, random_weights, synthetic

import llava_soundclip
from llava_soundclip import AudioTokenSubstituter, Projector, patch
from llava_soundclip.encoders import AudioEncoder

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = (15, 64, 150, 576)  # k
BATCHES = (1, 8)
GOAL = 0.2  # ms per substitution
CLIP = 3.0  # seconds of a sound, as in AVE-2

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models and few rounds, to check that it runs"
    )
    parser.add_argument(
        "--rounds", type=int, help="timed calls for each figure; 10 by default, 1 with --tiny"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; --tiny runs on a CPU")
    rounds = options.rounds or (1 if options.tiny else 10)
    report: dict[str, Any] = {"command": command(options), **machine(options.device)}
    print("\n".join(f"{name}: {value}" for name, value in report.items()))
    failed = False
    for name, part in parts(options.tiny, rounds, options.device).items():
        print(f"\n## {name}\n", flush=True)
        try:
            report[name] = part()
        except Exception:  # noqa: BLE001  a lent GPU is soon gone, so run the other parts
            traceback.print_exc()
            failed = True
            continue
        print(markdown(report[name]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(failed or report["tests"][0]["exit code"] != 0)


def command(options: argparse.Namespace) -> str:
    """The command that reproduces these figures."""
    rounds = [] if options.rounds is None else ["--rounds", str(options.rounds)]
    return " ".join(["python benchmarks/gpu.py", *(["--tiny"] if options.tiny else []), *rounds])


def machine(device: str) -> Row:
    """The card, and the versions of the software on it."""
    on_gpu = device != "cpu"
    return {
        "card": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "llava_soundclip": llava_soundclip.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def parts(tiny: bool, rounds: int, device: str) -> dict[str, Callable[[], list[Row]]]:
    """The parts to run, in order, by the name of their table."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    widths = (64, 64) if tiny else (SIZES["small"][0], 1024)  # of a sound and of the tower
    weights = random_weights(64, 2) if tiny else random_weights(*SIZES["small"])

    def encoder(window: str) -> AudioEncoder:
        return build_encoder(weights, window, device, str(dtype).removeprefix("torch."))

    return {
        "tests": gpu_tests,
        "substitution": lambda: time_substitution(widths[1], 20 * rounds, device, dtype),
        "first token": lambda: time_first_token(
            build_llava(device, dtype, tiny=tiny),
            encoder("clip"),
            Projector(*widths).to(device).eval(),
            rounds,
        ),
        "encoder": lambda: time_encoder(
            {name: encoder(name) for name in ("clip", "padded")}, 2 if tiny else 32, rounds, device
        ),
    }


def gpu_tests() -> list[Row]:
    """Run the tests that need a GPU; they are skipped without one."""
    # Only the files with such tests: others may need packages that the machine lacks.
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run([*line, *map(str, files)], check=False, cwd=ROOT, capture_output=True, text=True)
    print(f"```\n{done.stdout[-4000:].strip()}\n{done.stderr[-2000:].strip()}\n```\n")
    lines = done.stdout.strip().splitlines() or ["pytest printed nothing"]
    return [{"pytest -m gpu": lines[-1].strip("= "), "exit code": done.returncode}]


@torch.inference_mode()
def time_substitution(width: int, calls: int, device: str, dtype: torch.dtype) -> list[Row]:
    """Time a substitution at batch 1: alone, and as one of many in a row without waiting in between."""
    tokens = torch.randn(1, PATCHES + 1, width, device=device, dtype=dtype)
    f_a = torch.randn(1, width, device=device)
    rows = []
    for k in (15, 150):
        substituter = AudioTokenSubstituter(k)
        for name, finish in (("zero", substituter.zero), ("drop", substituter.drop)):

            def run(
                substituter: AudioTokenSubstituter = substituter, finish: Callable[..., Any] = finish
            ) -> Any:
                return finish(tokens, f_a, substituter.select(tokens, f_a))

            def many(run: Callable[[], Any] = run) -> None:
                for _ in range(calls):
                    run()

            many()
            alone = statistics.median(seconds(run, device) for _ in range(calls))
            in_a_row = statistics.median(seconds(many, device) / calls for _ in range(5))
            rows.append(
                {
                    "tokens": name,
                    "k": k,
                    "alone, ms": round(1e3 * alone, 4),
                    "in a row, ms": round(1e3 * in_a_row, 4),
                    "goal, ms": GOAL,
                }
            )
    return rows


@torch.inference_mode()
def time_first_token(model: Any, encoder: AudioEncoder, projector: Projector, rounds: int) -> list[Row]:
    """Time `generate` for one token: stock and all settings in turns, so that a drift affects all alike."""
    rows = []
    settings = [None, *((tokens, k) for tokens in ("zero", "drop") for k in BUDGETS)]
    for batch in BATCHES:
        inputs, sounds = prompt(model, batch), clips(encoder, batch)
        times: dict[tuple[str, int] | None, list[float]] = {setting: [] for setting in settings}
        caches: dict[tuple[str, int] | None, tuple[int, int]] = {}
        for _ in range(rounds + 1):  # the first round warms up and isn't counted
            for setting in settings:
                outputs: list[Any] = []

                def first_token(inputs: Row = inputs, outputs: list[Any] = outputs) -> None:
                    outputs.append(
                        model.generate(
                            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True
                        )
                    )

                with hearing(model, setting, sounds, encoder, projector):
                    times[setting].append(seconds(first_token, model.device.type))
                cache = outputs.pop().past_key_values
                caches[setting] = (cache.layers[0].keys.shape[2], cache_bytes(cache))
        stock = statistics.median(times[None][1:])
        for setting in settings:
            median = statistics.median(times[setting][1:])
            tokens, k = setting or ("stock", None)
            rows.append(
                {
                    "batch": batch,
                    "tokens": tokens,
                    "k": k,
                    "first token, ms": round(1e3 * median, 3),
                    "stock / this": round(stock / median, 3),
                    "cache, tokens": caches[setting][0],
                    "cache, MiB": round(caches[setting][1] / 2**20, 1),
                }
            )
    return rows


@contextmanager
def hearing(
    model: Any,
    setting: tuple[str, int] | None,
    sounds: Sequence[np.ndarray],
    encoder: AudioEncoder,
    projector: Projector,
) -> Iterator[None]:
    """Patch the model for (tokens, k) and open the sounds; None leaves the stock model."""
    if setting is None:
        yield
        return
    tokens, k = setting
    soundclip = patch(model, encoder, alignment="projected", projector=projector, tokens=tokens, k=k)
    with soundclip.audio(list(sounds), sampling_rate=encoder.sampling_rate):
        yield
    soundclip.unpatch()


def prompt(model: Any, batch: int) -> Row:
    """A random picture and some words for each row, in the form that the processor returns."""
    ids = torch.randint(3, 1000, (batch, 1 + PATCHES + WORDS), device=model.device)
    ids[:, 1 : 1 + PATCHES] = IMAGE_TOKEN
    pixels = torch.randn(batch, 3, 336, 336, device=model.device, dtype=model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def clips(encoder: AudioEncoder, count: int) -> list[np.ndarray]:
    """`count` synthetic sounds, repeated as needed."""
    sounds = synthetic(CLIP)
    return [sounds[i % len(sounds)] for i in range(count)]


@torch.inference_mode()
def time_encoder(encoders: Mapping[str, AudioEncoder], at_once: int, rounds: int, device: str) -> list[Row]:
    """Clips per second from waveforms to vectors, frontend included."""
    rows = []
    for window, encoder in encoders.items():
        sounds = clips(encoder, at_once)

        def embed(encoder: AudioEncoder = encoder, sounds: list[np.ndarray] = sounds) -> Any:
            return encoder.embed(sounds, encoder.sampling_rate)

        embed()
        spent = statistics.median(seconds(embed, device) for _ in range(rounds))
        rows.append(
            {
                "encoder": encoder.name,
                "width": encoder.dim,
                "window": window,
                "clips": f"{at_once} of {CLIP:g} s",
                "clips/s": round(at_once / spent, 2),
            }
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of rows with the same columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [["" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
