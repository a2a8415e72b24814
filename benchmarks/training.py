"""Speed of projector training against the loop that a researcher writes, and its growth with the features.

    python benchmarks/training.py                       # about ten minutes on two cores
    python benchmarks/training.py --layers 6            # Whisper base's blocks instead of one vector per clip
    python benchmarks/training.py --hidden 32           # almost no arithmetic, so that loading dominates
    OMP_NUM_THREADS=1 python benchmarks/training.py     # on a machine that others also use

The features are synthetic, written by `FeatureWriter`: float16, sounds 512 wide, CLS tokens 1024 wide, ten clips per
video. The same MLP is trained on them with the same loss and batches of 256 by

- ours: `train` with the paper's recipe. Its steps are timed; validation and files are reported apart.
- plain: a `Dataset` that reads the safetensors files row by row (`safe_open` once per file, then `get_slice`), a
  `DataLoader` with shuffling, and `torch.optim.Adam`; with 0 and with 2 workers, of which the better one counts;
- in memory: the same loop on two float32 tensors that hold everything, which makes loading as fast as possible.

They take turns, one epoch each after one to warm up. A ratio is the median over the rounds. "loading" reads the same
batches and does nothing with them. Growth is measured in a separate process for each size: seconds per row, and the
highest RssAnon, above its value before and in all (Linux). RssAnon leaves out mapped file pages, which the system takes
back when it needs them. The memory of InfoNCE in chunks, forward and backward, is measured in the same way.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llava_soundclip.alignment.projector import Projector
from llava_soundclip.features.splits import split_by_source
from llava_soundclip.features.store import FeatureFolder, FeatureHeader, FeatureWriter
from llava_soundclip.training.fit import Recipe, train
from llava_soundclip.training.losses import InfoNCE, make_loss

AUDIO, WIDTH, BATCH, VIDEO = 512, 1024, 256, 10
GOAL = 5.0


def write_features(folder: Path, rows: int, layers: int | None) -> Path:
    signature = {"encoder": "whisperclip", "checkpoint": "random", "pooling": "valid", "window": "clip"}
    header = FeatureHeader(
        encoder=signature if layers else {**signature, "fusion": "average_all"},
        audio_dim=AUDIO,
        layers=layers,
        tower="random",
        tower_weights="random",
        tower_layer=-2,
        width=WIDTH,
    )
    torch.manual_seed(0)
    with FeatureWriter(folder, header) as writer:
        for row in range(rows):
            writer.add(
                f"{row:07}", f"video{row // VIDEO}", torch.randn(header.audio_shape), torch.randn(WIDTH)
            )
    return folder


class Rows(Dataset):
    """The data set that a researcher writes: one row at a time, with every file opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shards"
        table = pq.read_table(folder / "index")
        self.shards, self.rows = (table.column(name).to_pylist() for name in ("shard", "row"))
        self.files: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        shard, row = self.shards[item], self.rows[item]
        if shard not in self.files:
            self.files[shard] = safe_open(self.folder / shard, "pt")
        file = self.files[shard]
        return file.get_slice("audio")[row].float(), file.get_slice("cls")[row].float()


def loader(folder: Path, workers: int) -> DataLoader:
    return DataLoader(
        Rows(folder), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def shuffled(tensors: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(tensors[0])).split(BATCH):
        yield tensors[0][rows], tensors[1][rows]


class PlainLoop:
    """The recipe without this library's loop: one epoch per call."""

    def __init__(self, hidden: int) -> None:
        self.projector = Projector(AUDIO, WIDTH, hidden)
        self.optimiser = torch.optim.Adam(self.projector.parameters(), lr=Recipe.learning_rate)
        self.loss_of = make_loss(Recipe.loss)

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for audio, cls in batches:
            sounds = audio if audio.ndim == 2 else audio.mean(1)
            loss = self.loss_of(self.projector(sounds), cls)["loss"]
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()


def spent(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def train_ours(folder: Path, hidden: int) -> tuple[float, float]:
    """Seconds of the steps in the second epoch, and of the validation and files after them."""
    steps: list[float] = []
    epochs: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        train(
            folder,
            out,
            Recipe(hidden=hidden, epochs=2),
            on_step=lambda done, total: steps.append(time.perf_counter()),
            on_epoch=lambda row: epochs.append(time.perf_counter()),
        )
    return steps[-1] - epochs[0], epochs[1] - steps[-1]


def compare(folder: Path, layers: int | None, options: argparse.Namespace) -> None:
    data = FeatureFolder(folder)
    rows, trained = len(data), len(split_by_source(data.sources, Recipe.validation)[0])
    tensors = data.rows(torch.arange(rows))
    loop = PlainLoop(options.hidden)
    loaders = [loader(folder, workers) for workers in (0, 2)]
    ways: dict[str, Callable[[], Iterable[object]]] = {
        "plain, 0 workers": lambda: loaders[0],
        "plain, 2 workers": lambda: loaders[1],
        "in memory": lambda: shuffled(tensors),
        "ours": lambda: map(data.rows, torch.randperm(rows).split(BATCH)),
    }
    loading: dict[str, list[float]] = {name: [] for name in ways}
    training: dict[str, list[float]] = {name: [] for name in ways}
    after = []
    for _ in range(options.rounds + 1):
        for name, batches in ways.items():
            loading[name].append(rows / spent(lambda batches=batches: list(map(id, batches()))))
            if name == "ours":
                seconds, validation = train_ours(folder, options.hidden)
                training[name].append(trained / seconds)
                after.append(validation)
            else:
                training[name].append(rows / spent(lambda batches=batches: loop(batches())))
    kind = "one vector" if layers is None else f"{layers} blocks"
    print(f"\n{rows:,} rows, {kind} per clip, hidden {options.hidden}, {torch.get_num_threads()} threads")
    print(f"{'':18}{'loading rows/s':>16}{'training samples/s':>20}{'ours/this':>11}")
    for name in ways:
        ratio = statistics.median(
            ours / this for ours, this in zip(training["ours"][1:], training[name][1:], strict=True)
        )
        print(
            f"{name:18}{statistics.median(loading[name][1:]):16,.0f}"
            f"{statistics.median(training[name][1:]):20,.0f}{ratio:10.2f}x"
        )
    print(
        f"goal: {GOAL:g}x the better plain way. Validation and files: {statistics.median(after):.2f} s per epoch"
    )


def growing(rows: int, hidden: int) -> tuple[float, int, int]:
    """Seconds of an epoch with its validation, and the bytes of `highest`; run in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), rows, None)
        with highest() as taken:
            seconds = sum(train_ours(features, hidden))
    return seconds, *taken


def infonce(pairs: int, chunk: int | None) -> tuple[float, int, int]:
    """Seconds of the loss and its gradient, and the bytes of `highest`; run in a separate process."""
    loss_of = InfoNCE(chunk=chunk)
    with highest() as taken:
        f_a, c = torch.randn(pairs, WIDTH, requires_grad=True), torch.randn(pairs, WIDTH)
        seconds = spent(lambda: loss_of(f_a, c)["loss"].backward())
    return seconds, *taken


@contextmanager
def highest() -> Iterator[list[int]]:
    """The highest RssAnon in the block in bytes: above its value before, and in all. Filled in when the block ends."""
    before, taken, is_over = anonymous(), [0, 0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            taken[1] = max(taken[1], anonymous())
            taken[0] = taken[1] - before

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield taken
    finally:
        is_over.set()
        watcher.join()


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def alone(call: Callable[..., tuple[float, int, int]], *arguments: object) -> tuple[float, int, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the comparison")
    parser.add_argument("--layers", type=int, help="Whisper blocks per sound; one vector if not given")
    parser.add_argument("--hidden", type=int, default=Recipe.hidden)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(write_features(Path(folder), options.rows, options.layers), options.layers, options)
    print(f"\n{'growth: rows':18}{'s/epoch':>12}{'us/row':>10}{'MiB':>7}{'in all':>8}")
    for rows in options.growth:
        seconds, *taken = alone(growing, rows, options.hidden)
        print(f"{rows:<18,}{seconds:12.2f}{seconds / rows * 1e6:10.0f}{megabytes(taken)}", flush=True)
    print(f"\n{'InfoNCE: pairs':18}{'chunk':>12}{'s':>10}{'MiB':>7}{'in all':>8}")
    for pairs, chunk in ((1024, 1024), (8192, 1024), (8192, None)):
        seconds, *taken = alone(infonce, pairs, chunk)
        print(f"{pairs:<18,}{chunk or 'none':>12}{seconds:10.2f}{megabytes(taken)}", flush=True)


def megabytes(taken: Sequence[int]) -> str:
    return f"{taken[0] / 2**20:7.0f}{taken[1] / 2**20:8.0f}"


if __name__ == "__main__":
    main()
