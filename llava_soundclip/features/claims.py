"""Claims on clips, when several processes make one folder: locks on bytes of a file, which end with the process.

Groups of clips come from a hash of their ids, so that processes with different lists agree without communication.
"""

import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from llava_soundclip.clips import Clip

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GROUPS = 1024


class Claims:
    """The clips of a run that no other process works on, group by group.

    On Windows, and on file systems without such locks, all clips are handed out. Processes that run at the same time
    then do the same work, and the folder's reader takes each row once.

    Args:
        path: the file to lock; created if it doesn't exist.
        clips: clips with unique ids.
    """

    def __init__(self, path: Path, clips: Sequence[Clip]) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - closing it would release the claims
        self._groups: dict[int, list[Clip]] = {}
        for clip in clips:
            self._groups.setdefault(group_of(clip.id), []).append(clip)
        self._open: Counter[int] = Counter()  # clips in each claimed group that aren't on the disk yet

    def close(self) -> None:
        """Release all claims."""
        self._file.close()

    def left(self) -> bool:
        """Whether other processes still hold groups of this run."""
        return bool(self._groups)

    def take(self, finished: Callable[[], Collection[str]], *, wait: bool) -> Iterator[tuple[Clip, bool]]:
        """Claim one group after another during the iteration.

        Args:
            finished: function that returns the ids on the disk; called after each claim.
            wait: whether to wait for groups that other processes hold, or leave them for a later call. Before a
                call with `wait`, all rows of this process must be on the disk.

        Yields:
            Each clip of the claimed groups, and whether it is finished.
        """
        for group in sorted(self._groups):  # the same order in all processes, so that there is no deadlock
            if not self._lock(group, wait):
                continue
            clips = self._groups.pop(group)
            ids = finished()
            states = [(clip, clip.id in ids) for clip in clips]
            todo = sum(not is_finished for _, is_finished in states)
            if todo:
                self._open[group] = todo
            else:
                self._unlock(group)
            yield from states

    def settle(self, ids: Collection[str]) -> None:
        """Record that clips are on the disk, or never will be. Groups without open clips are released."""
        for id in ids:
            group = group_of(id)
            self._open[group] -= 1
            if self._open[group] == 0:
                del self._open[group]
                self._unlock(group)

    def _lock(self, group: int, wait: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, group, os.SEEK_SET)
        except (BlockingIOError, PermissionError):  # which of them means "held" depends on the system
            return False
        except OSError:
            return True
        return True

    def _unlock(self, group: int) -> None:
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, group, os.SEEK_SET)
            except OSError:  # no locks here: nothing was held
                pass


def group_of(id: str) -> int:
    """The group of a clip, the same in every process."""
    return zlib.crc32(id.encode()) % GROUPS
