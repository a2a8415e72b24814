"""Asking the judge about every caption."""

import asyncio
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llava_soundclip._extras import require
from llava_soundclip._version import __version__
from llava_soundclip.evaluation.judge.answers import FAILED, Answer, AnswersFile, read_answers
from llava_soundclip.evaluation.judge.figures import Judgement, Usage, judgement
from llava_soundclip.evaluation.judge.prompt import (
    ANSWER_TOKENS,
    MALFORMED,
    PROMPT_HASH,
    RESPONSE_FORMAT,
    JudgedCaption,
    Question,
    read,
)
from llava_soundclip.evaluation.judge.server import NoAnswer, Pace, Rejected, Server, open_client
from llava_soundclip.messages import scrub, secrets_of
from llava_soundclip.running import progress_bar

_OPENAI_HOST = "api.openai.com"
_TEXT_KEPT = 500  # characters kept of an answer without scores
_NAME_KEPT = 100  # characters kept of the name that the server gives the model
_MOST_TOKENS = 2**40  # a larger count isn't one
_FAILURES_IN_A_ROW = 20  # failures after which the server counts as dead


@dataclass(frozen=True)
class Judge:
    """A language model that scores captions, behind an OpenAI-compatible server.

        judge = Judge("gpt-4o", input_price=2.5, output_price=10)
        print("about", judge.estimate(captions, "judged.jsonl"))
        found = judge.run(captions, "judged.jsonl")
        found.scores["raw"]["usefulness"]

    The key is read from OPENAI_API_KEY; a server of your own may need none. The judge sees one caption at a time, with
    the clip's references, its picture, or both. It sees neither the clip's id nor the setting. After a malformed answer
    the judge is asked once more; after a refusal it isn't.

    Args:
        model: name of the model on the server.
        base_url: address of the server, such as "http://localhost:8000/v1"; by default OPENAI_BASE_URL, else OpenAI.
        temperature: sampling temperature; None leaves it to the server, as reasoning models require.
        repeat_share: share of the captions that are asked about twice, 0 to 1; at least one caption if above 0.
        seed: random seed for the order, the repeated captions, and the bootstrap.
        concurrency: number of parallel requests.
        requests_per_minute: maximum rate, spaced evenly; None for no limit.
        tokens_per_minute: maximum rate of tokens read and written, by the estimate; None for no limit.
        timeout: seconds to wait for an answer.
        max_retries: further attempts after status 408, 409, 429 or 5xx, a timeout or a broken connection. Pauses grow,
            or follow Retry-After.
        input_price: price per million tokens read; needed with `output_price` to compute the cost.
        output_price: price per million tokens written.

    Raises:
        ValueError: if an argument is out of range.
    """

    model: str
    base_url: str | None = None
    temperature: float | None = 0.0
    repeat_share: float = 0.1
    seed: int = 0
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 60.0
    max_retries: int = 5
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.repeat_share <= 1:
            raise ValueError(f"repeat_share must be from 0 to 1, not {self.repeat_share}")
        if self.concurrency < 1 or self.max_retries < 0:
            raise ValueError(
                f"concurrency must be 1 or more and max_retries 0 or more, not {self.concurrency} and "
                f"{self.max_retries}"
            )
        for name in ("requests_per_minute", "tokens_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("to know the cost, give input_price and output_price")

    def estimate(self, captions: Iterable[JudgedCaption], out: str | os.PathLike[str]) -> Usage:
        """Estimate the remaining requests without retries; the number of tokens is about right for English.

        Args:
            captions: see `run`.
            out: see `run`.

        Raises:
            ValueError: as for `run`.
        """
        answered = {answer.key for answer in self._answers(out) if answer.outcome != FAILED}
        left = [question for question in self._questions(captions) if question.key not in answered]
        return self._usage(len(left), sum(question.tokens for question in left), len(left) * ANSWER_TOKENS)

    def run(
        self, captions: Iterable[JudgedCaption], out: str | os.PathLike[str], *, progress: bool = False
    ) -> Judgement:
        """Ask about every caption without an answer in `out`, and compute the figures of all.

        An interrupted run resumes, also after Ctrl-C. A caption without an answer after all retries counts as failed,
        and the next run asks about it again.

        Args:
            captions: captions to judge, one per clip and setting.
            out: file of the answers (JSON Lines), created or resumed. Only one run may use it at a time; another is
                refused.
            progress: whether to show a progress bar.

        Returns:
            The figures.

        Raises:
            ValueError: if a clip has two captions in one setting, there is no caption or no key, or the file is another
                judge's.
            BlockingIOError: if another run is writing to the file.
            RuntimeError: if the server rejects all requests, redirects to another server, or seems dead. Answers
                received so far are in the file.
            ImportError: if openai or scipy isn't installed.
        """
        captions = list(captions)
        openai = require("openai", extra="evaluation")
        require("scipy", extra="evaluation")  # before money is spent, not after
        questions = self._questions(captions)
        answers = self._answers(out)
        found = {answer.key: answer for answer in answers if answer.outcome != FAILED}
        todo = deque(question for question in questions if question.key not in found)
        key = os.environ.get("OPENAI_API_KEY") or ("" if self._identity["host"] == _OPENAI_HOST else "none")
        if todo and not key:
            raise ValueError("the judge needs a key: set OPENAI_API_KEY")
        with AnswersFile(Path(out), self._identity) as file, progress_bar(progress, unit="captions") as bar:
            task = bar.add_task("judge", total=len(questions), completed=len(questions) - len(todo))

            def keep(answer: Answer) -> None:
                file.append(answer)
                answers.append(answer)
                found[answer.key] = answer
                bar.advance(task)

            if todo:
                _in_a_loop_of_its_own(_JudgeRun(self, todo, keep, any_answered=bool(found)), openai, key)
        usage = self._usage(
            sum(answer.requests for answer in answers),
            sum(answer.prompt_tokens for answer in answers),
            sum(answer.completion_tokens for answer in answers),
            sum(answer.unreported for answer in answers),
        )
        asked = [found[question.key] for question in questions]
        about = {
            **self._identity,
            "served_as": sorted({answer.served_as for answer in asked if answer.served_as}),
            "repeat_share": self.repeat_share,
            "seed": self.seed,
            "versions": {"llava-soundclip": __version__, "openai": version("openai")},
        }
        settings = dict.fromkeys(caption.setting for caption in captions)
        return judgement(asked, settings, about, usage, seed=self.seed)

    @property
    def _address(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or f"https://{_OPENAI_HOST}/v1"

    @property
    def _identity(self) -> dict[str, Any]:
        """The fields that answers in one file must share."""
        try:
            host = urlsplit(self._address).hostname  # an address may hold a password
        except ValueError as error:
            raise ValueError(f"the judge's address {scrub(self._address)} isn't one: {error}") from error
        return {"model": self.model, "host": host, "prompt": PROMPT_HASH, "temperature": self.temperature}

    def _answers(self, out: str | os.PathLike[str]) -> list[Answer]:
        return read_answers(Path(out), self._identity)

    def _questions(self, captions: Iterable[JudgedCaption]) -> list[Question]:
        """All questions in the order of asking.

        The order and the repeats depend on a hash of each caption, so that captions added later change neither.
        """
        captions = list(captions)
        if not captions:
            raise ValueError("there is no caption to judge")
        names = Counter((caption.id, caption.setting) for caption in captions)
        (id, setting), most = names.most_common(1)[0]
        if most > 1:
            raise ValueError(
                f"clip {id!r} has {most} captions in setting {setting!r}: each needs one of its own"
            )

        def lot(use: str, caption: JudgedCaption) -> bytes:
            return hashlib.sha256(repr((self.seed, use, caption.id, caption.setting)).encode()).digest()

        count = max(1, round(self.repeat_share * len(captions))) if self.repeat_share else 0
        again = sorted(captions, key=lambda caption: lot("repeat", caption))[:count]
        questions = [Question(caption, 0) for caption in captions] + [
            Question(caption, 1) for caption in again
        ]
        return sorted(questions, key=lambda question: lot(f"order {question.repeat}", question.caption))

    def _usage(self, requests: int, prompt_tokens: int, completion_tokens: int, unreported: int = 0) -> Usage:
        cost = None
        if self.input_price is not None and self.output_price is not None:
            cost = (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6
        return Usage(requests, prompt_tokens, completion_tokens, cost, unreported)


class _JudgeRun:
    """One call of `Judge.run`, with one worker per parallel request."""

    def __init__(
        self, judge: Judge, todo: deque[Question], keep: Callable[[Answer], None], *, any_answered: bool
    ) -> None:
        self.todo = todo
        self._judge = judge
        self._keep = keep
        self._any_answered = any_answered
        self._failures = 0

    async def __call__(self, openai: Any, key: str) -> None:
        judge = self._judge
        options: dict[str, Any] = {"model": judge.model, "response_format": RESPONSE_FORMAT}
        if judge.temperature is not None:
            options["temperature"] = judge.temperature
        pace = Pace(judge.requests_per_minute, judge.tokens_per_minute)
        secrets = secrets_of(judge._address)
        if os.environ.get("OPENAI_API_KEY") == key:
            secrets.append(key)
        async with open_client(openai, judge._address, key, judge.timeout) as client:
            server = Server(
                client,
                pace,
                timeout=judge.timeout,
                max_retries=judge.max_retries,
                options=options,
                secrets=secrets,
            )
            workers = [asyncio.create_task(self._work(server)) for _ in range(judge.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, server: Server) -> None:
        while self.todo:
            answer = await self._answer(server, self.todo.popleft())
            self._keep(answer)
            if answer.outcome != FAILED:
                self._any_answered, self._failures = True, 0
                continue
            self._failures += 1
            if self._failures == _FAILURES_IN_A_ROW:
                raise RuntimeError(f"the last {self._failures} captions got no answer: {answer.text}")

    async def _answer(self, server: Server, question: Question) -> Answer:
        outcome, scores, text, served_as = FAILED, None, "", ""
        used: Counter[str] = Counter()
        for _ in range(2):
            try:
                completion = await server.ask(question.messages, question.tokens + ANSWER_TOKENS)
            except NoAnswer as error:
                outcome, text = FAILED, str(error)
                break
            except Rejected as error:
                if not error.filtered and not self._any_answered:  # the fault isn't in this caption
                    raise RuntimeError(f"the judge's server rejects such requests ({error})") from error
                outcome, text = "filtered" if error.filtered else FAILED, str(error)
                break
            used.update(_used(completion))
            name = getattr(completion, "model", None)
            served_as = server.clean(name)[:_NAME_KEPT] if isinstance(name, str) else ""
            reading = read(completion)
            outcome, scores, text = reading.outcome, reading.scores, server.clean(reading.text)
            if outcome not in MALFORMED:
                break
        return Answer(
            *question.key,
            outcome,
            scores,
            text=text[:_TEXT_KEPT],
            requests=used["requests"],
            unreported=used["unreported"],
            prompt_tokens=used["prompt_tokens"],
            completion_tokens=used["completion_tokens"],
            served_as=served_as,
        )


def _used(completion: Any) -> dict[str, int]:
    usage = getattr(completion, "usage", None)
    tokens = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    counted = {
        name: count for name, count in tokens.items() if type(count) is int and 0 <= count <= _MOST_TOKENS
    }
    return {"requests": 1, **counted} if len(counted) == 2 else {"requests": 1, "unreported": 1}


def _in_a_loop_of_its_own(run: _JudgeRun, openai: Any, key: str) -> None:
    """Like `asyncio.run`, but also works inside a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(run(openai, key))
        return
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, run(openai, key))
        try:
            done.result()
        except KeyboardInterrupt:
            run.todo.clear()  # requests in flight are still awaited
            raise
