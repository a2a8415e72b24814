"""Which sound a call hears. A call that opened none is stock.

A block opens a sound, or silence. Blocks may end in any order, thread or context. A call hears

- the innermost open block of its own context: its thread, its asyncio task, or the task that started it;
- the block that is open in a generator which runs the call, even if a server runs each step in another context;
- in a plain thread, the block in which `Thread.start` was called. Pools and servers are left out, since they serve
  everybody. A thread or task that such a thread starts is refused, since it may serve anybody.

If that can't be told, the call is refused.
"""

import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import thread as executor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing import pool
from types import FrameType

from torch import Tensor


@dataclass(frozen=True)
class Hearing:
    """The sounds of one call.

    Attributes:
        embeddings: (n, d_a) float32, one z_a per image, in the order of the images.
        images_per_row: number of images in each row of the prompt while `generate` runs; else None.
        has_raw_logits: whether `forward` returns a logit for each token that the language model reads.
    """

    embeddings: Tensor
    images_per_row: tuple[int, ...] | None = None
    has_raw_logits: bool = False


_COUNTER = itertools.count()


@dataclass(eq=False)
class Block:
    """One sound or silence that was opened.

    Attributes:
        owner: the handle's sounds.
        hearing: None for silence, and after the end.
        is_silent: whether it was opened as silence.
        generator: the frame of the generator whose step opened the block, itself or by functions that it called.
        is_its_own: whether the generator opened it itself.
        opener: the thread and the asyncio task that opened it.
        parent: the innermost open block where it was opened.
        is_open: false after the end.
        number: counts blocks in the order in which they were opened.
    """

    owner: "OpenSounds"
    hearing: Hearing | None
    generator: FrameType | None
    is_its_own: bool
    opener: tuple[int, int | None]
    parent: "Block | None"
    is_silent: bool
    is_open: bool = True
    number: int = field(default_factory=lambda: next(_COUNTER))


# The blocks of all handles that were opened in this context, or before it was copied.
_BLOCKS: ContextVar[tuple[Block, ...]] = ContextVar("llava_soundclip.blocks", default=())
# The blocks of a thread that got them from `Thread.start`, and the only caller that hears them; None for nobody.
_GIVEN: ContextVar[dict[Block, "tuple[int, int | None] | None"] | None] = ContextVar(
    "llava_soundclip.given", default=None
)


class OpenSounds:
    """The open blocks of one handle."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._lock = threading.Lock()

    @contextmanager
    def block(self, hearing: Hearing | None) -> Iterator[None]:
        """A block in which calls hear these sounds, or nothing."""
        parent = self._innermost(self._inherited())
        block = Block(
            self,
            hearing,
            *_generator_frame(sys._getframe(1)),
            _caller(),
            parent if parent is not None and not _is_paused(parent) else None,
            is_silent=hearing is None,
        )
        with self._lock:
            self._blocks.append(block)
        _BLOCKS.set((*_BLOCKS.get(), block))
        _watch_threads(block)
        try:
            yield
        finally:
            with self._lock:
                self._blocks.remove(block)
            block.is_open, block.hearing, block.generator = False, None, None
            # In another context than the first, there is nothing to remove. The block stays there, closed.
            _BLOCKS.set(tuple(other for other in _BLOCKS.get() if other is not block))
            _unwatch_threads(block)

    def hearing(self) -> Hearing | None:
        """The sounds that a call from this place hears; None for a stock call.

        Raises:
            RuntimeError: if the sound with which a thread or task was started has ended, if a sound is open in a
                generator that waits, or if a thread got it that was started inside and then started this one.
        """
        inherited = self._inherited()
        if not inherited and not self._blocks:
            return None
        block = self._innermost(inherited)
        last = inherited[-1] if inherited else None
        if (
            last is not None
            and not last.is_open
            and last.opener != _caller()
            and (block is None or block.number < last.number)
        ):
            raise RuntimeError(
                "the sound with which this thread or task was started has ended: make the call before the block "
                "ends, open a sound here, or open silence() for a call without one"
            )
        if block is not None and _waits(block):
            raise RuntimeError(
                "a sound is open in a generator that waits, so it isn't known whether this call should hear it: "
                "open it with a contextmanager, or open silence() for a call without a sound"
            )
        if block is None or block.hearing is None:
            return None
        caller = _caller()
        if (_GIVEN.get() or {}).get(block, caller) != caller:
            raise RuntimeError(
                "a thread that was started inside a sound's block has started this thread or task, so it isn't known "
                "whether this call should hear it: open the sound here, or open silence() for a call without one"
            )
        return block.hearing

    def _inherited(self) -> list[Block]:
        """The blocks of this context. A silence that has ended doesn't matter."""
        return [
            block for block in _BLOCKS.get() if block.owner is self and (block.is_open or not block.is_silent)
        ]

    def _innermost(self, inherited: list[Block]) -> Block | None:
        with self._lock:
            candidates = {block for block in (*inherited, *self._blocks) if block.is_open}
        frames = _running_frames() if any(block.generator for block in candidates) else ()
        depths = {block: frames.index(frame) for block in candidates if (frame := block.generator) in frames}
        reachable = {*inherited, *depths}
        if depths:
            # The steps of a generator may run inside other blocks, and beside those of generators that wait.
            own = min(depths, key=lambda block: (depths[block], -block.number))
            reachable = {block for block in reachable if own in _chain(block)}
        candidates &= reachable
        return max(candidates, key=lambda block: (not _waits(block), block.number), default=None)


def _chain(block: Block | None) -> Iterator[Block]:
    """A block and those around it."""
    while block is not None:
        yield block
        block = block.parent


def _caller() -> tuple[int, int | None]:
    """The thread, and the asyncio task if there is one."""
    asyncio = sys.modules.get("asyncio")
    try:
        task = asyncio.current_task() if asyncio is not None else None
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), None if task is None else id(task)


def _running_frames() -> tuple[FrameType, ...]:
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return tuple(frames)


def _is_paused(block: Block) -> bool:
    """Whether the caller opened a block in the step of a generator that doesn't run now."""
    return (
        block.generator is not None and block.opener == _caller() and block.generator not in _running_frames()
    )


def _waits(block: Block) -> bool:
    """Whether a paused block is its generator's own. A block that a function left open may be its caller's."""
    return block.is_its_own and _is_paused(block)


def _generator_frame(frame: FrameType | None) -> tuple[FrameType | None, bool]:
    """The generator's frame nearest to the caller, and whether it is the caller itself.

    A `contextmanager` stands for the function that enters it. Above a coroutine is an event loop, which runs
    everybody's tasks.
    """
    is_its_own = True
    while frame is not None and not frame.f_code.co_flags & inspect.CO_COROUTINE:
        is_generator = bool(frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
        is_entered = frame.f_back is not None and _is_contextlib(frame.f_back)
        if is_generator and not is_entered and not _is_contextlib(frame):
            return frame, is_its_own
        is_its_own = is_its_own and (is_generator or _is_contextlib(frame))
        frame = frame.f_back
    return None, False


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "contextlib"


# While a sound is open, `Thread.start` is wrapped, so that a plain thread gets the block in which it was started.
_SOUNDING: set[Block] = set()
_START_LOCK = threading.Lock()
_stock_start: Callable[[threading.Thread], None] | None = None


def _watch_threads(block: Block) -> None:
    global _stock_start
    if block.is_silent:
        return
    with _START_LOCK:
        _SOUNDING.add(block)
        if _stock_start is None:
            _stock_start = threading.Thread.start
            threading.Thread.start = _start  # type: ignore


def _unwatch_threads(block: Block) -> None:
    global _stock_start
    with _START_LOCK:
        _SOUNDING.discard(block)
        # If it was wrapped again since, ours stays below the new wrapper and does nothing.
        if not _SOUNDING and _stock_start is not None and threading.Thread.start is _start:
            threading.Thread.start = _stock_start  # type: ignore
            _stock_start = None


def _start(thread: threading.Thread) -> None:
    start = _stock_start or threading.Thread.start
    target = getattr(thread, "_target", None)
    if getattr(target, "__module__", None) not in (executor.__name__, pool.__name__, "socketserver"):
        found = [
            owner._innermost(owner._inherited()) for owner in {block.owner for block in tuple(_SOUNDING)}
        ]
        blocks = tuple(block for block in found if block is not None and not _waits(block))
        if blocks:
            _run_in(thread, blocks)
    start(thread)


def _run_in(thread: threading.Thread, blocks: tuple[Block, ...]) -> None:
    run = thread.run
    before = _GIVEN.get() or {}

    def run_in_blocks() -> None:
        del thread.run
        _BLOCKS.set(blocks)
        _GIVEN.set({block: None if block in before else _caller() for block in blocks})
        run()

    thread.run = run_in_blocks  # type: ignore[method-assign]
