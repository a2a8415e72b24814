"""The judge's answers in a file, line by line, so that an interrupted run resumes."""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_soundclip.evaluation.judge.prompt import DIMENSIONS, SCORES
from llava_soundclip.files import parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FAILED = "failed"


@dataclass(frozen=True)
class Answer:
    """The outcome of a question, with all of its requests.

    Attributes:
        id: id of the clip.
        setting: setting of the caption.
        repeat: 1 if this is the caption's second question, else 0.
        shown: hash of all that the judge was shown.
        outcome: "scored", the reason why not, or "failed" if no answer came; the next run asks failed ones again.
        scores: scores by dimension, or None.
        text: first 500 characters of an answer without scores.
        requests: number of answered requests.
        unreported: number of answered requests for which the server reported no tokens.
        prompt_tokens: tokens read, as the server counted them.
        completion_tokens: tokens written, as the server counted them.
        served_as: the model that the server says it was.
    """

    id: str
    setting: str
    repeat: int
    shown: str
    outcome: str
    scores: dict[str, int] | None = None
    text: str = ""
    requests: int = 0
    unreported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    served_as: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """See `Question.key`."""
        return self.id, self.setting, self.repeat, self.shown


def read_answers(path: Path, judge: Mapping[str, Any]) -> list[Answer]:
    """Read the answers in a file; empty if there is no file. An incomplete last line, left by a kill, is ignored.

    Args:
        path: the file.
        judge: the judge that its first line must name.

    Raises:
        ValueError: if the answers are another judge's (the message names the differences), or a line isn't an answer.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    answers = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if number == 1:
                there = dict(row["judge"])
            else:
                answers.append(_answer_of(row))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: this isn't a judge's answer") from error
        if number == 1 and there != judge:
            differing = sorted(name for name in judge | there.keys() if there.get(name) != judge.get(name))
            listed = ", ".join(f"{name} {there.get(name)!r}, not {judge.get(name)!r}" for name in differing)
            raise ValueError(f"{path} was made with {listed}: give another file")
    return answers


def _answer_of(row: Mapping[str, Any]) -> Answer:
    answer = Answer(**row)
    texts = (answer.id, answer.setting, answer.shown, answer.outcome, answer.text, answer.served_as)
    counts = (
        answer.repeat,
        answer.requests,
        answer.unreported,
        answer.prompt_tokens,
        answer.completion_tokens,
    )
    scores = answer.scores or {}
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(count) is int and count >= 0 for count in counts)
        or (answer.outcome == "scored") != bool(scores)
        or (scores and scores.keys() != set(DIMENSIONS))
        or not all(type(score) is int and score in SCORES for score in scores.values())
    ):
        raise ValueError("a field is of another kind")
    return answer


class AnswersFile(AbstractContextManager):
    """Appends answers to a file; each is on the disk before the next one is written.

    Args:
        path: the file; created with its folder if there is none.
        judge: the judge, written to the first line.

    Raises:
        BlockingIOError: if another run is writing to the file.
        OSError: if it can't be written.
    """

    def __init__(self, path: Path, judge: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise BlockingIOError(
                    f"another run is writing to {path}: wait for it, or give another file"
                ) from None
            except OSError:  # a file system without locks
                pass
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)
        if not whole:
            self._write({"judge": dict(judge)})

    def append(self, answer: Answer) -> None:
        """Append an answer."""
        self._write(asdict(answer))

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
