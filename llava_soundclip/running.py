"""Running a job: its device, progress, bad items, and the command that started it. Knows no model."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from llava_soundclip._text import printable
from llava_soundclip.messages import scrub

if TYPE_CHECKING:
    from rich.progress import Progress, Task

PROGRAM = "llava-soundclip"
_EVERY = 10.0  # seconds between lines about progress

T = TypeVar("T")

_ALIKE = 4  # this many clips with the same reason share one line


def command_line() -> str:
    """The command as the user typed it, for model cards and provenance.

    Passwords and keys are hidden. A path in the present folder is relative to it, and of any other absolute path only
    the name is left, since cards are published.
    """
    return shlex.join([PROGRAM, *(scrub(_without_place(word)) for word in sys.argv[1:])])


def _without_place(word: str) -> str:
    """A word of the command without the folders of an absolute path, also in "--out=/data/features"."""
    head, equals, path = word.partition("=")
    if not equals or os.path.isabs(word):
        head, equals, path = "", "", word
    if not os.path.isabs(path):
        return word
    inside = os.path.relpath(path)
    short = os.path.basename(os.path.normpath(path)) if inside.startswith(os.pardir) else inside
    return f"{head}{equals}{short or path}"


_STOPPING = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_stopped_by = signal.SIGINT


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C inside a block: schedulers send them before they kill. Only the first counts.

    In other threads than the main one, and for signals that are ignored already, as by nohup, nothing changes.
    """
    global _stopped_by

    def stop(number: int, frame: object) -> None:
        global _stopped_by
        _stopped_by = signal.Signals(number)
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = _handlers(_STOPPING) if threading.current_thread() is threading.main_thread() else {}
    before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    _stopped_by = signal.SIGINT
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_code() -> int:
    """The exit code of an interrupted command, as in a shell: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _stopped_by


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C or SIGTERM inside a block, so that work stops at a good place.

    A second one has its usual effect at once, and so has the first one when the block ends.

    Yields:
        A function that says whether one is held.
    """
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        held.append(number)
        for signalled, handler in before.items():
            signal.signal(signalled, handler)

    before = (
        _handlers(["SIGINT", *_STOPPING]) if threading.current_thread() is threading.main_thread() else {}
    )
    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(held)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _handlers(names: Sequence[str]) -> dict[int, Any]:
    """The handlers of signals that aren't ignored, and that Python knows."""
    found = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


def default_device() -> str:
    """The accelerator if there is one, else "cpu"."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def progress_bar(shown: bool, unit: str | None = None) -> "Progress":
    """Progress on the error stream: a bar with the time left on a terminal, else a line every ten seconds.

    Args:
        shown: whether anything is printed.
        unit: unit of the speed that the bar also shows; None for no speed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} {unit}/s")

    class Lines(Progress):
        def start(self) -> None:
            self._ticker = Ticker(self._print)
            self._ticker.start()

        def stop(self) -> None:
            self._ticker.stop()

        def _print(self) -> None:
            for task in self.tasks:
                print(task_line(task), file=sys.stderr, flush=True)

    console = Console(stderr=True)
    if shown and not console.is_terminal:
        # The speed is estimated over minutes, since a single batch may take longer than rich's 30 s.
        return Lines(console=console, speed_estimate_period=600)
    speed = () if unit is None else (Speed(),)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *speed, TimeLeft())
    return Progress(*columns, console=console, disable=not shown, redirect_stdout=False)


class Ticker:
    """Calls a function every ten seconds from its own thread, so also during a long step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._over.set()
        self._thread.join()

    def run(self) -> None:
        """Call the function until stopped, or until nobody reads the lines any more."""
        while not self._over.wait(_EVERY):
            try:
                self._call()
            except OSError:
                return


def task_line(task: "Task") -> str:
    """A task's state in words, such as "captions: 24 of 480, 3 min left"."""
    count = "" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}, "
    if task.finished or task.time_remaining is None:
        return f"{task.description}: {count}{_duration(task.elapsed or 0)} so far"
    return f"{task.description}: {count}{_duration(task.time_remaining)} left"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def work_through(
    items: Sequence[str], work: Callable[[Sequence[str]], Sequence[T]], batch_size: int
) -> Iterator[tuple[dict[str, T], dict[str, str]]]:
    """Work in batches. If a batch fails, its items are tried one by one.

    Args:
        items: names to work on.
        work: function of a batch that returns one result per item.
        batch_size: items per batch.

    Yields:
        The results of a batch by item, and the reasons of the items that failed.
    """
    for at in range(0, len(items), batch_size):
        yield _work_on(items[at : at + batch_size], work)


def _work_on(
    batch: Sequence[str], work: Callable[[Sequence[str]], Sequence[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    try:
        return dict(zip(batch, work(batch), strict=True)), {}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other items come next
        if len(batch) == 1:
            return {}, {batch[0]: str(error) or type(error).__name__}
    results: dict[str, T] = {}
    failed: dict[str, str] = {}
    for item in batch:
        done, reasons = _work_on([item], work)
        results |= done
        failed |= reasons
    return results, failed


def failures_text(bad: Mapping[str, str], total: int, outcome: str) -> str:
    """The list of bad clips for a user. Clips that fail for the same reason are listed below it.

    Args:
        bad: reasons by clip.
        total: number of all clips.
        outcome: a phrase such as "could not be captioned".
    """
    alike: dict[str, list[str]] = {}
    for clip, reason in bad.items():
        shown = printable(clip)
        alike.setdefault(_without_name(shown, printable(reason)), []).append(shown)
    lines = [f"{len(bad)} of {total} clips {outcome}:"]
    for reason, clips in alike.items():
        if len(clips) < _ALIKE:
            lines += [f"  {clip}: {reason}" for clip in clips]
    for reason, clips in alike.items():
        if len(clips) >= _ALIKE:
            lines += [f"  {len(clips)} clips: {reason}", *(f"    {clip}" for clip in clips)]
    return "\n".join(lines)


def _without_name(clip: str, reason: str) -> str:
    """A reason without the clip's path, which many errors begin with."""
    name, colon, rest = reason.partition(f"{os.path.basename(clip)}: ")
    return rest if colon and (not name or name.endswith(("/", os.sep))) else reason
