"""From clips to features: decoded in worker processes, embedded in full batches, written shard by shard."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch

from llava_soundclip.clips import Clip
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.features.decode import SORTED_AT_ONCE, SORTED_BYTES, Decoded, DecodingPool
from llava_soundclip.features.embed import Embedder, clock, decoder_of, header_of
from llava_soundclip.features.ledger import Extraction, Ledger, check_ids
from llava_soundclip.features.store import FeatureWriter, StoredDType
from llava_soundclip.features.towers import VisionTower
from llava_soundclip.running import progress_bar


def extract_features(
    clips: Iterable[Clip],
    encoder: AudioEncoder,
    tower: VisionTower,
    out: str | os.PathLike[str],
    *,
    frames: int = 1,
    patches: bool = False,
    dtype: StoredDType = "float16",
    shard_size: int = 1000,
    workers: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Extraction:
    """Make the features of clips. An interrupted run resumes; several runs may share the work.

    For WhisperCLIP the means of all blocks are stored, so that any fusion can use them; for other encoders their
    vector. The picture's CLS token at the tower's layer is stored; with `patches=True`, its patch tokens as well. The
    picture is the middle frame, or the mean over several frames.

    Args:
        clips: clips with unique ids. See `read_clips`.
        encoder: the audio encoder.
        tower: the vision tower.
        out: the features folder.
        frames: number of frames per clip, evenly spaced.
        patches: whether to store the patch tokens as well.
        dtype: dtype of the stored numbers.
        shard_size: clips per shard. Up to one shard is lost if a run is killed.
        workers: number of processes that decode; 0 decodes in this process. By default one per core if the tower is
            on a GPU, else one per two cores, and torch uses the other cores.
        batch_size: clips per batch of the encoder and the tower.
        progress: whether to show a progress bar.

    Returns:
        The result, with the bad clips and their reasons.

    Raises:
        ValueError: for an invalid option, two clips with the same id, or a folder with features of another kind. The
            message names the differences.
        RuntimeError: if no worker process starts.
    """
    clips = list(clips)
    for name, value, least in (
        ("frames", frames, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers or 0, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    check_ids(clips)
    header = header_of(encoder, tower, frames=frames, patches=patches, dtype=dtype)
    result = Extraction()
    embedder = Embedder(encoder, tower, patches, batch_size, result.seconds)
    decoder = decoder_of(encoder, tower, frames=frames)
    if workers is None:
        workers = max(1, _cores() // 2) if tower.device.type == "cpu" else _cores()
    with ExitStack() as stack:
        writer = stack.enter_context(FeatureWriter(out, header, shard_size=shard_size))
        bar = stack.enter_context(progress_bar(progress, unit="clips"))
        task = bar.add_task("features", total=len(clips))
        ledger = stack.enter_context(Ledger(clips, writer, result, lambda: bar.advance(task)))
        if workers:
            stack.enter_context(_torch_threads(_cores() - workers))
        run = _ExtractionRun(ledger, embedder, batch_size)
        try:
            pool = stack.enter_context(
                DecodingPool(decoder, workers, ahead=SORTED_AT_ONCE * batch_size + workers)
            )
            run.work_on(pool, wait=False)
            if ledger.left():
                bar.update(task, description="features (waiting for other processes)")
                run.work_on(pool, wait=True)
        except KeyboardInterrupt:
            ledger.flush()
            result.interrupted = True
    return result


class _ExtractionRun:
    """One call of `extract_features`."""

    def __init__(self, ledger: Ledger, embedder: Embedder, batch_size: int) -> None:
        self.ledger = ledger
        self.embedder = embedder
        self.batch_size = batch_size
        self.seconds = ledger.result.seconds

    def work_on(self, pool: DecodingPool[Clip, Decoded], *, wait: bool) -> None:
        decoded = self._timed(pool.decode(self.ledger.todo(wait=wait)))
        good = self._good(decoded)
        batches = 1  # few at first, so that embedding starts soon
        while group := self._group(good, batches * self.batch_size):
            group.sort(key=lambda item: item[1].waveform.shape[-1])
            for at in range(0, len(group), self.batch_size):
                self._embed(group[at : at + self.batch_size])
            batches = min(2 * batches, SORTED_AT_ONCE)
        self.ledger.flush()

    def _group(self, good: Iterator[tuple[Clip, Decoded]], clips: int) -> list[tuple[Clip, Decoded]]:
        """The next clips to sort together; fewer if they are large."""
        group: list[tuple[Clip, Decoded]] = []
        room = SORTED_BYTES
        for clip, found in islice(good, clips):
            group.append((clip, found))
            room -= found.nbytes
            if room <= 0:
                break
        return group

    def _good(self, decoded: Iterable[tuple[Clip, Decoded | str]]) -> Iterator[tuple[Clip, Decoded]]:
        for clip, found in decoded:
            if isinstance(found, str):
                self.ledger.fail(clip, found)
            else:
                self.seconds["decode"] += found.seconds
                yield clip, found

    def _timed(self, decoded: Iterator[tuple[Clip, Decoded | str]]) -> Iterator[tuple[Clip, Decoded | str]]:
        while True:
            with clock(self.seconds, "wait"):
                item = next(decoded, None)
            if item is None:
                return
            yield item

    def _embed(self, batch: Sequence[tuple[Clip, Decoded]]) -> None:
        made = self.embedder([found for _, found in batch])
        for (clip, _), row in zip(batch, made, strict=True):
            if isinstance(row, str):
                self.ledger.fail(clip, row)
            else:
                self.ledger.add(clip, *row)


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Limit torch to `count` threads. With several threads per core, it was 12 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, count)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
