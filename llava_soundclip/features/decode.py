"""Decoding of clips in worker processes: a waveform and prepared pictures per clip. Doesn't import torch."""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from llava_soundclip.clips import Clip, frames_of, sound_of
from llava_soundclip.media import MediaWarning

if TYPE_CHECKING:
    from typing_extensions import Self

SORTED_AT_ONCE = 4  # batches whose clips are sorted by length, so that clips of a batch have similar lengths
SORTED_BYTES = 2**28
_AHEAD_BYTES = 2**28


@dataclass(frozen=True)
class Decoded:
    """A decoded clip.

    Attributes:
        waveform: (channels, samples) float32.
        sampling_rate: sampling rate of the waveform in Hz.
        pixels: (frames, 3, H, W) float32, the input of the tower.
        seconds: time that decoding took.
        notes: warnings about the clip's files.
    """

    waveform: np.ndarray
    sampling_rate: int
    pixels: np.ndarray
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of the waveform and the pixels in bytes."""
        return self.waveform.nbytes + self.pixels.nbytes


@dataclass(frozen=True)
class Decoder:
    """Decodes clips. Picklable.

    Attributes:
        sampling_rate: sampling rate in Hz at which sounds are decoded; None for each sound's own.
        frames: number of pictures per clip.
        prepare: function of pictures that returns (frames, 3, H, W) float32, the input of the tower.
    """

    sampling_rate: int | None
    frames: int
    prepare: Callable[[Sequence[Image]], np.ndarray]

    def __call__(self, clip: Clip) -> Decoded | str:
        """Decode a clip, or return the reason why it can't be decoded."""
        began = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", MediaWarning)
                waveform, rate = sound_of(clip, self.sampling_rate)
                pictures = frames_of(clip, self.frames)
            pixels = self.prepare(pictures)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other clips come next
            return str(error) or type(error).__name__
        notes = tuple(str(warning.message) for warning in caught)
        return Decoded(waveform, rate, pixels, time.perf_counter() - began, notes)


def _told(found: Decoded | str) -> Decoded | str:
    """What was decoded, after its warnings are given in this process."""
    for note in found.notes if isinstance(found, Decoded) else ():
        warnings.warn(note, MediaWarning, stacklevel=2)
    return found


class DecodingPool:
    """Decodes in worker processes, some clips ahead. Clips keep their order.

    A clip that makes a worker die is a bad clip: the pool is restarted, and the other clips are decoded again.

    Args:
        decoder: the work of each worker.
        workers: number of processes; 0 decodes in this process.
        ahead: number of clips to decode in advance; fewer if they are large.
    """

    def __init__(self, decoder: Decoder, workers: int, ahead: int) -> None:
        self._decoder = decoder
        self._workers = workers
        self._ahead = ahead
        self._largest = 1  # bytes of the largest clip so far
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Self":
        if self._workers:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def decode(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Decoded | str]]:
        """Yield each clip with its decoded content, or with the reason why it is bad."""
        if self._pool is None:
            for clip in clips:
                yield clip, _told(self._decoder(clip.fetched()))
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
        _told(found)
        if isinstance(found, Decoded):
            self._largest = max(self._largest, found.nbytes)
        return clip, found

    def _next(self, waiting: deque[tuple[Clip, "Future[Decoded | str]"]]) -> tuple[Clip, Decoded | str]:
        clip, future = waiting.popleft()
        try:
            return clip, future.result()
        except BrokenProcessPool:
            pass
        # Any clip in progress may have made the worker die, so this one is tried alone.
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
        """Restart the workers after one died, and check that they start.

        Raises:
            RuntimeError: if they don't start.
        """
        assert self._pool is not None
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._start()
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the processes that decode don't start. A script that uses them needs `if __name__ == '__main__':` "
                "before its first call, since each process imports it; workers=0 decodes without them."
            ) from error


_decoder: Decoder


def _begin(decoder: Decoder) -> None:
    """Set up a worker process: it ignores Ctrl-C, which the main process handles, and ends with the main process."""
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
