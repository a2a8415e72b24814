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
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from PIL.Image import Image

from llava_soundclip.clips import Clip, FrameTime, frame_of, frames_of, open_media, sound_of
from llava_soundclip.media import MediaWarning, probe

if TYPE_CHECKING:
    from typing_extensions import Self

SORTED_AT_ONCE = 4  # batches whose clips are sorted by length, so that clips of a batch have similar lengths
SORTED_BYTES = 2**28
_AHEAD_BYTES = 2**28


class _Fetchable(Protocol):
    def fetched(self) -> Any: ...


Item = TypeVar("Item", bound=_Fetchable)
Found = TypeVar("Found")


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


@dataclass(frozen=True)
class Wanted:
    """Parts of a clip to decode.

    Attributes:
        clip: the clip.
        sound: whether its sound is wanted.
        picture: whether its picture is wanted.
    """

    clip: Clip
    sound: bool = True
    picture: bool = False

    def fetched(self) -> "Wanted":
        """See `Clip.fetched`."""
        return replace(self, clip=self.clip.fetched())


@dataclass(frozen=True)
class Parts:
    """Decoded parts of a clip.

    Attributes:
        sound: (channels, samples) float32 and its rate in Hz; None if it wasn't wanted.
        picture: RGB picture; None if it wasn't wanted.
        is_substitute: whether the picture is that of the decoder, since the clip has none.
        notes: warnings about the clip's files.
    """

    sound: tuple[np.ndarray, int] | None
    picture: Image | None
    is_substitute: bool = False
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of the sound and the picture in bytes."""
        heard = 0 if self.sound is None else self.sound[0].nbytes
        return heard + (0 if self.picture is None else 3 * self.picture.width * self.picture.height)


@dataclass(frozen=True)
class PartsDecoder:
    """Decodes the sound or the picture of clips, or both. Picklable.

    Attributes:
        sampling_rate: sampling rate in Hz at which sounds are decoded; None for each sound's own.
        frame: the frame of a video: "middle", "first", or its time in seconds.
        picture: picture file for clips without pictures.
    """

    sampling_rate: int | None
    frame: FrameTime = "middle"
    picture: str | None = None

    def __call__(self, wanted: Wanted) -> Parts | str:
        """Decode a clip, or return the reason why it can't be decoded."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", MediaWarning)
                clip = wanted.clip
                is_substitute = wanted.picture and self._needs_picture(clip)
                shown = replace(clip, picture=self.picture) if is_substitute else clip
                sound = sound_of(clip, self.sampling_rate) if wanted.sound else None
                picture = frame_of(shown, self.frame) if wanted.picture else None
        except Exception as error:  # noqa: BLE001 - whatever it is, the other clips come next
            return str(error) or type(error).__name__
        return Parts(sound, picture, is_substitute, tuple(str(warning.message) for warning in caught))

    def _needs_picture(self, clip: Clip) -> bool:
        if self.picture is None or clip.picture is not None or clip.fault is not None:
            return False
        return not probe(open_media(clip.sound)).has_video


def _told(found: Any) -> Any:
    """What was decoded, after its warnings are given in this process."""
    for note in getattr(found, "notes", ()):
        warnings.warn(note, MediaWarning, stacklevel=2)
    return found


class DecodingPool(Generic[Item, Found]):
    """Decodes in worker processes, some clips ahead. Clips keep their order.

    A clip that makes a worker die is a bad clip: the pool is restarted, and the other clips are decoded again.

    Args:
        decoder: the work of each worker, on clips or on `Wanted` parts of them; it returns a reason for bad ones.
        workers: number of processes; 0 decodes in this process.
        ahead: number of clips to decode in advance; fewer if they are large.
    """

    def __init__(self, decoder: Callable[[Item], Found | str], workers: int, ahead: int) -> None:
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

    def decode(self, clips: Iterable[Item]) -> Iterator[tuple[Item, Found | str]]:
        """Yield each clip with its decoded content, or with the reason why it is bad."""
        if self._pool is None:
            for clip in clips:
                yield clip, _told(self._decoder(clip.fetched()))
            return
        waiting: deque[tuple[Item, Future[Found | str]]] = deque()
        for clip in clips:
            waiting.append((clip, self._submit(clip)))
            while len(waiting) >= max(self._workers, min(self._ahead, _AHEAD_BYTES // self._largest)):
                yield self._taken(waiting)
        while waiting:
            yield self._taken(waiting)

    def _taken(self, waiting: deque[tuple[Item, "Future[Found | str]"]]) -> tuple[Item, Found | str]:
        clip, found = self._next(waiting)
        _told(found)
        self._largest = max(self._largest, getattr(found, "nbytes", 0))
        return clip, found

    def _next(self, waiting: deque[tuple[Item, "Future[Found | str]"]]) -> tuple[Item, Found | str]:
        clip, future = waiting.popleft()
        try:
            return clip, future.result()
        except BrokenProcessPool:
            pass
        # Any clip in progress may have made the worker die, so this one is tried alone.
        self._restart()
        result: Found | str
        try:
            result = self._submit(clip).result()
        except BrokenProcessPool:
            result = "the process that decoded it died: it is damaged, or too large for the memory"
            self._restart()
        for i, (other, before) in enumerate(waiting):
            if not before.done() or before.exception() is not None:
                waiting[i] = other, self._submit(other)
        return clip, result

    def _submit(self, clip: Item) -> "Future[Found | str]":
        assert self._pool is not None
        try:
            return self._pool.submit(_decode, clip.fetched())
        except BrokenProcessPool as error:
            failed: Future[Found | str] = Future()
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


_decoder: Callable[[Any], Any]


def _begin(decoder: Callable[[Any], Any]) -> None:
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


def _decode(clip: Any) -> Any:
    return _decoder(clip)
