"""Retrieval over all pairs without an N x N matrix, up to a million pairs: time and memory, against numpy with one.

    python benchmarks/retrieval.py                                   # about half an hour on two cores
    python benchmarks/retrieval.py --part naive growth               # some of the parts
    python benchmarks/retrieval.py --naive 3000 --growth 9000 18000 36000 --whole 4000 --most 20000 --minutes 0.1

- naive: the code that a researcher writes in numpy: unit vectors, one N x N product, and counts along both axes. It
  and `ranks` take turns, each in a separate process. A ratio is the median over the rounds.
- growth: memory beyond the inputs for N, 2 N and 4 N. Every strip needs the same, so two strips are enough.
- whole: `ranks` from beginning to end.
- most: so many pairs that a whole run takes hours. Vectors are memory-mapped from files. Strips of rows are counted
  for some minutes, and the whole is extrapolated from them.

Pairs are synthetic, with a cosine of about 0.1. "matmul" is the time of the bare products in blocks, extrapolated from
a few seconds in the same process. It is a lower bound for every way that multiplies all with all. "beyond" is the
highest RssAnon above its value with the inputs loaded. RssAnon leaves out mapped file pages, which the system takes
back when it needs them. "peak" is the peak resident memory, everything included (VmHWM; Linux).
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llava_soundclip.evaluation.retrieval.ranks import BLOCK, LEVEL, Places, ranks, strip_counts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 10_000  # rows made at a time
NOISE = 10.0


@dataclass
class Spent:
    """Seconds and bytes; see the head of the file."""

    seconds: float = 0.0
    matmul: float = 0.0
    beyond: int = 0
    peak: int = 0
    ranks: tuple[np.ndarray, ...] = field(default=(), repr=False)
    strips: int = 0

    def __str__(self) -> str:
        share = f"{self.seconds / self.matmul:10.2f}" if self.matmul else f"{'':10}"
        return f"{self.seconds:12,.1f}{share}{self.beyond / 2**20:12,.0f}{self.peak / 2**20:12,.0f}"


HEAD = f"{'s':>12}{'x matmul':>10}{'beyond MiB':>12}{'peak MiB':>12}"


def fill(f_a: Tensor, c: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    for at in range(0, len(c), CHUNK):
        rows = slice(at, min(at + CHUNK, len(c)))
        seen = torch.randn(c[rows].shape, generator=generator)
        c[rows] = seen
        f_a[rows] = seen + NOISE * torch.randn(seen.shape, generator=generator)


def made(pairs: int, width: int, dtype: str) -> tuple[Tensor, Tensor]:
    f_a, c = (torch.empty(pairs, width, dtype=DTYPES[dtype]) for _ in range(2))
    fill(f_a, c)
    return f_a, c


def mapped(folder: Path, pairs: int, width: int, dtype: str) -> tuple[Tensor, Tensor]:
    f_a, c = (
        torch.from_file(str(folder / name), shared=True, size=pairs * width, dtype=DTYPES[dtype])
        for name in ("f_a", "c")
    )
    return f_a.view(pairs, width), c.view(pairs, width)


@contextmanager
def measured() -> Iterator[Spent]:
    """Time and memory of the block, filled in when it ends."""
    before, found, is_over = memory("RssAnon"), Spent(), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            found.beyond = max(found.beyond, memory("RssAnon") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        is_over.set()
        watcher.join()
        found.peak = memory("VmHWM")


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def matmul(pairs: int, width: int, *, seconds: float = 3.0) -> float:
    """Seconds of the products of all pairs, in blocks."""
    x, y = torch.randn(2, min(pairs, BLOCK), width)
    out, times = torch.empty(len(x), len(y)), []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 2:
        start = time.perf_counter()
        torch.mm(x, y.T, out=out)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[1:]) * (pairs / len(x)) ** 2


def naive_ranks(f_a: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    f_a, c = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (f_a, c))
    cosines = f_a @ c.T
    right = np.diagonal(cosines).copy()
    found = []
    for axis, limits in ((1, right[:, None]), (0, right)):
        nearer = np.count_nonzero(cosines > limits + LEVEL, axis)
        level = np.count_nonzero(cosines >= limits - LEVEL, axis) - nearer - 1
        found.append(1 + nearer + level / 2)
    return tuple(found)


def of_naive(pairs: int, width: int) -> Spent:
    f_a, c = (each.numpy() for each in made(pairs, width, "float32"))
    with measured() as found:
        found.ranks = naive_ranks(f_a, c)
    return found


def of_ranks(pairs: int, width: int, dtype: str) -> Spent:
    f_a, c = made(pairs, width, dtype)
    with measured() as found:
        found.ranks = tuple(side.mean.numpy() for side in ranks(f_a, c))
    found.matmul = matmul(pairs, width)
    return found


def write(folder: Path, pairs: int, width: int, dtype: str) -> Spent:
    with measured() as found:
        fill(*mapped(folder, pairs, width, dtype))
    return found


def of_strips(
    folder: Path | None, pairs: int, width: int, dtype: str, minutes: float, least: int = 1
) -> tuple[Spent, Spent]:
    """Time and memory of the counted strips, and an extrapolation to all; without a folder, vectors are in memory."""
    f_a, c = mapped(folder, pairs, width, dtype) if folder else made(pairs, width, dtype)
    with measured() as found:
        places = Places(f_a, c)
        started = time.perf_counter()
        strips = list(places.strips())
        for rows in strips:
            places.add(rows, *strip_counts(f_a, c, places.right, rows))
            found.strips += 1
            spent = time.perf_counter() - started
            if found.strips >= least and spent > 60 * minutes:
                break
        places.ranks()
    whole = replace(found, strips=len(strips), matmul=matmul(pairs, width))
    whole.seconds += spent / found.strips * (len(strips) - found.strips)
    return found, whole


def alone(call: Callable[..., object], *arguments: object) -> object:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def part_naive(options: argparse.Namespace) -> None:
    n = options.naive
    print(f"\n{f'{n:,} x {n:,}, float32':24}{HEAD}")
    rounds = []
    for _ in range(options.rounds):
        theirs, ours = alone(of_naive, n, options.width), alone(of_ranks, n, options.width, "float32")
        rounds.append((theirs, ours))
        print(f"{'numpy, N x N':24}{theirs}\n{'ranks':24}{ours}", flush=True)
    for name, figure in (("time", "seconds"), ("memory beyond the inputs", "beyond")):
        ratio = statistics.median(getattr(theirs, figure) / getattr(ours, figure) for theirs, ours in rounds)
        print(f"numpy/ranks, {name}: {ratio:.2f}x")
    theirs, ours = rounds[-1]
    apart = np.abs(np.concatenate(theirs.ranks) - np.concatenate(ours.ranks))
    print(
        f"equal ranks: {100 * np.mean(apart == 0):.3f} %, the others differ by {apart.max():g} at most "
        "(the two ways of multiplying round differently, which matters for near ties)"
    )


def part_growth(options: argparse.Namespace) -> None:
    print(f"\n{'growth: pairs':24}{HEAD}{'more, bytes/pair':>20}")
    last = None
    for pairs in options.growth:
        found, _ = alone(of_strips, None, pairs, options.width, "float32", 0, 2)
        more = f"{(found.beyond - last[1]) / (pairs - last[0]):20.0f}" if last else ""
        print(f"{pairs:<24,}{found}{more}", flush=True)
        last = pairs, found.beyond


def part_whole(options: argparse.Namespace) -> None:
    print(f"\n{f'{options.whole:,} x {options.whole:,}':24}{HEAD}")
    for dtype in DTYPES:
        print(f"{dtype:24}{alone(of_ranks, options.whole, options.width, dtype)}", flush=True)


def part_most(options: argparse.Namespace) -> None:
    print(f"\n{f'{options.most:,} x {options.most:,}':24}{HEAD}")
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            alone(write, folder, options.most, options.width, dtype)
            some, whole = alone(of_strips, folder, options.most, options.width, dtype, options.minutes)
        print(f"{f'{dtype}, {some.strips} of {whole.strips} strips':24}{some}")
        print(f"{'  all, extrapolated':24}{whole}  ({whole.seconds / 3600:.2f} h)", flush=True)


PARTS = {"naive": part_naive, "growth": part_growth, "whole": part_whole, "most": part_most}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--naive", type=int, default=30_000, help="pairs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of naive")
    parser.add_argument("--growth", nargs="+", type=int, default=[100_000, 200_000, 400_000], help="pairs")
    parser.add_argument("--whole", type=int, default=100_000, help="pairs")
    parser.add_argument("--most", type=int, default=1_000_000, help="pairs")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="minutes of strips in most, for each dtype"
    )
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument(
        "--folder",
        help="folder for the files of most, 8 GB by default; the system's temporary folder if not given",
    )
    options = parser.parse_args()
    print(f"width {options.width}, {torch.get_num_threads()} threads")
    for part in options.part:
        PARTS[part](options)


if __name__ == "__main__":
    main()
