"""Clips decoded, in worker processes: a waveform and prepared pictures each. Knows no torch."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from llava_soundclip.clips import Clip, load_frames, load_sound, open_media

if TYPE_CHECKING:
    from typing_extensions import Self

SORTED_AT_ONCE = 4  # batches whose clips are sorted by length, so that each batch holds clips of one
SORTED_BYTES = 2**28
_AHEAD_BYTES = 2**28


@dataclass(frozen=True)
class Decoded:
    """A decoded clip.

    Attributes:
        waveform: (channels, samples) float32.
        sampling_rate: Hz.
        pixels: (frames, 3, H, W) float32, as the tower takes them.
        seconds: time that decoding took.
    """

    waveform: np.ndarray
    sampling_rate: int
    pixels: np.ndarray
    seconds: float

    @property
    def nbytes(self) -> int:
        return self.waveform.nbytes + self.pixels.nbytes


@dataclass(frozen=True)
class Decoder:
    """Decodes clips. Picklable.

    Attributes:
        sampling_rate: Hz that sounds are decoded at; None for each one's own.
        frames: number of pictures per clip.
        prepare: makes (frames, 3, H, W) float32 of pictures, as the tower takes them.
    """

    sampling_rate: int | None
    frames: int
    prepare: Callable[[Sequence[Image]], np.ndarray]

    def __call__(self, clip: Clip) -> Decoded | str:
        """Decode a clip, or say why it can't be."""
        began = time.perf_counter()
        try:
            if clip.fault is not None:
                return clip.fault
            sound = open_media(clip.sound)
            waveform, rate = load_sound(sound, self.sampling_rate, clip.start, clip.end)
            pictured = sound if clip.picture is None else open_media(clip.picture)
            pictures = load_frames(pictured, self.frames, clip.start, clip.end)
            pixels = self.prepare(pictures)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other clips are still to be decoded
            return str(error) or type(error).__name__
        return Decoded(waveform, rate, pixels, time.perf_counter() - began)


class DecodingPool:
    """Decodes in worker processes, some clips ahead; clips come out in the order in which they went in.

    A clip at which a worker dies is a bad clip: the pool is started anew, and the others are decoded again.

    Args:
        decoder: the work of each worker.
        workers: processes; 0 decodes in this one.
        ahead: clips that are decoded, or being so, before they are asked for; fewer where they are large.
    """

    def __init__(self, decoder: Decoder, workers: int, ahead: int) -> None:
        self._decoder = decoder
        self._workers = workers
        self._ahead = ahead
        self._largest = 1  # bytes of a clip so far
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Self":
        if self._workers:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def decode(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Decoded | str]]:
        """Each clip with what it holds, or with the reason why it is bad."""
        if self._pool is None:
            for clip in clips:
                yield clip, self._decoder(clip.fetched())
            return
        waiting: deque[tuple[Clip, Future[Decoded | str]]] = deque()
        for clip in clips:
            waiting.append((clip, self._submit(clip)))
            while len(waiting) >= max(self._workers, min(self._ahead, _AHEAD_BYTES // self._largest)):
                yield self._taken(waiting)
        while waiting:
            yield self._taken(waiting)

    def _taken(self, waiting: deque[tuple[Clip, "Future[Decoded | str]"]]) -> tuple[Clip, Decoded | str]:
        clip, found = self._next(waiting)
        if isinstance(found, Decoded):
            self._largest = max(self._largest, found.nbytes)
        return clip, found

    def _next(self, waiting: deque[tuple[Clip, "Future[Decoded | str]"]]) -> tuple[Clip, Decoded | str]:
        clip, future = waiting.popleft()
        try:
            return clip, future.result()
        except BrokenProcessPool:
            pass
        # Any of those under way may be the one that it died of: this one is tried alone.
        self._restart()
        result: Decoded | str
        try:
            result = self._submit(clip).result()
        except BrokenProcessPool:
            result = "the process that decoded it died: it is damaged, or too large for the memory"
            self._restart()
        for i, (other, before) in enumerate(waiting):
            if not before.done() or before.exception() is not None:
                waiting[i] = other, self._submit(other)
        return clip, result

    def _submit(self, clip: Clip) -> "Future[Decoded | str]":
        assert self._pool is not None
        try:
            return self._pool.submit(_decode, clip.fetched())
        except BrokenProcessPool as error:
            failed: Future[Decoded | str] = Future()
            failed.set_exception(error)
            return failed

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(
            self._workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(self._decoder,)
        )

    def _restart(self) -> None:
        """Start workers after one died, and see that they come up.

        Raises:
            RuntimeError: if they don't.
        """
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._start()
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the processes that decode don't start. A script that uses them needs `if __name__ == '__main__':` "
                "before its first call, since each process imports it; workers=0 does without them."
            ) from error


_decoder: Decoder


def _begin(decoder: Decoder) -> None:
    """Make a new process a worker: Ctrl-C is for the main process, and without that one it ends."""
    global _decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _decoder = decoder


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(clip: Clip) -> Decoded | str:
    return _decoder(clip)
