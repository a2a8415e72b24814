"""The state of a run's clips: made, present, bad or in progress, in step with the folder and other processes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from llava_soundclip.clips import Clip
from llava_soundclip.features.claims import Claims
from llava_soundclip.features.embed import clock
from llava_soundclip.features.store import FeatureWriter

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Extraction:
    """The result of an extraction.

    Attributes:
        made: number of clips whose features this run wrote.
        there: number of clips that were in the folder already, or that another process made during the run.
        bad: for each other clip, the reason, by id.
        seconds: duration of each stage. "decode" is the sum over the workers; "wait", "encoder", "tower" and "write"
            are the main process's.
        interrupted: whether Ctrl-C ended the run. The features made until then are in the folder.
    """

    made: int = 0
    there: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    interrupted: bool = False


class Ledger:
    """Hands out clips, and takes the row of each, or the reason why it has none. Use it as a context manager.

    Args:
        clips: clips with unique ids. See `check_ids`.
        writer: writer of the folder.
        result: the result to fill in.
        advance: called after each clip.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        writer: FeatureWriter,
        result: Extraction,
        advance: Callable[[], None],
    ) -> None:
        self.writer = writer
        self.result = result
        self._advance = advance
        self._claims = Claims(writer.path / "locks" / "claims", clips)
        self._unsafe: list[str] = []  # ids of rows in the writer that aren't on the disk yet

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.close()

    def left(self) -> bool:
        """Whether other processes still hold clips of this run."""
        return self._claims.left()

    def todo(self, *, wait: bool) -> Iterator[Clip]:
        """The clips for this process, claimed during the iteration.

        Args:
            wait: whether to wait for clips that other processes hold, or leave them for a later call.
        """
        for clip, finished in self._claims.take(self._finished, wait=wait):
            if finished:
                self.result.there += 1
                self._advance()
            else:
                yield clip

    def add(self, clip: Clip, audio: Tensor, tokens: Tensor) -> None:
        """Write a clip's row.

        Args:
            clip: a clip from `todo`, which is added once.
            audio: (d_a,) or (L, d_a) float32.
            tokens: (P+1, D) float32 with CLS first, or (1, D) in a folder without patches.
        """
        with clock(self.result.seconds, "write"):
            try:
                patches = tokens[1:] if self.writer.header.patches else None
                times = {"start": clip.start, "end": clip.end}
                wrote = self.writer.add(clip.id, clip.source, audio, tokens[0], patches, **times)
            except ValueError as error:
                self.fail(clip, str(error))
                return
        self.result.made += 1
        self._unsafe.append(clip.id)
        self._advance()
        if wrote:
            self._settle()

    def fail(self, clip: Clip, reason: str) -> None:
        """Record the reason why a clip has no row."""
        self.result.bad[clip.id] = reason.encode("utf-8", "backslashreplace").decode()
        self._claims.settle([clip.id])
        self._advance()

    def flush(self) -> None:
        """Write the rows so far to the disk."""
        with clock(self.result.seconds, "write"):
            self.writer.flush()
        self._settle()

    def _finished(self) -> set[str]:
        self.writer.refresh()
        return self.writer.finished

    def _settle(self) -> None:
        """Release the groups of the rows so far, which are on the disk."""
        self._claims.settle(self._unsafe)
        self._unsafe.clear()


def check_ids(clips: Sequence[Clip]) -> None:
    """Check that ids are unique.

    Raises:
        ValueError: if two clips have the same id; the message names the first such id.
    """
    twice = [id for id, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise ValueError(f"two clips have the id {twice[0]!r}: each clip needs its own")
