"""Whose sound a call hears: blocks in threads, tasks, generators and servers."""

import asyncio
import contextlib
import contextvars
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import torch

from llava_soundclip import SoundCLIP, patch
from llava_soundclip.hearing import Hearing, OpenSounds
from tests.conftest import TinyEncoder
from tests.hosts.families import RATE, K, make_inputs, make_sounds
from tests.test_patching import generate, scores


def sounds(number: float) -> Hearing:
    return Hearing(torch.tensor([[number]]))


def heard(opened: OpenSounds) -> float | None:
    hearing = opened.hearing()
    return None if hearing is None else float(hearing.embeddings)


@pytest.fixture
def opened() -> OpenSounds:
    return OpenSounds()


def in_a_thread(call: Any) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except RuntimeError as error:
            results.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_blocks_of_one_context(opened: OpenSounds) -> None:
    assert heard(opened) is None
    with opened.block(sounds(1)):
        with opened.block(sounds(2)):
            with opened.block(None):
                assert heard(opened) is None
                with opened.block(sounds(3)):
                    assert heard(opened) == 3
            assert heard(opened) == 2
        assert heard(opened) == 1
    assert heard(opened) is None


def test_blocks_that_end_in_another_order(opened: OpenSounds) -> None:
    first, second = opened.block(sounds(1)), opened.block(sounds(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert heard(opened) == 2
    second.__exit__(None, None, None)
    assert heard(opened) is None


def test_a_block_that_ends_in_another_context_or_thread(opened: OpenSounds) -> None:
    for end in (contextvars.copy_context().run, in_a_thread):
        block = opened.block(sounds(1))
        block.__enter__()
        end(lambda block=block: block.__exit__(None, None, None))
        assert heard(opened) is None
        with opened.block(sounds(2)):
            assert heard(opened) == 2


def test_handles_are_apart(opened: OpenSounds) -> None:
    other = OpenSounds()
    with opened.block(sounds(1)), other.block(sounds(2)):
        assert (heard(opened), heard(other)) == (1, 2)
        assert in_a_thread(lambda: (heard(opened), heard(other))) == (1, 2)
    assert (heard(opened), heard(other)) == (None, None)


class TestThreads:
    def test_a_thread_hears_the_block_in_which_it_was_started(self, opened: OpenSounds) -> None:
        with opened.block(sounds(1)):
            with opened.block(sounds(2)):
                assert in_a_thread(lambda: heard(opened)) == 2
            assert in_a_thread(lambda: heard(opened)) == 1
            with opened.block(None):
                assert in_a_thread(lambda: heard(opened)) is None
        assert in_a_thread(lambda: heard(opened)) is None

    def test_a_subclass_with_its_own_run(self, opened: OpenSounds) -> None:
        class Mine(threading.Thread):
            result: float | None = None

            def run(self) -> None:
                self.result = heard(opened)

        with opened.block(sounds(1)):
            thread = Mine()
            thread.start()
            thread.join()
        assert thread.result == 1

    def test_a_thread_of_another_thread_hears_nothing(self, opened: OpenSounds) -> None:
        """A server: one request has a sound, and the main thread starts another for one without."""
        is_open, is_done = threading.Event(), threading.Event()

        def request() -> None:
            with opened.block(sounds(1)):
                is_open.set()
                is_done.wait(60)

        thread = threading.Thread(target=request)
        thread.start()
        is_open.wait(60)
        assert heard(opened) is None and in_a_thread(lambda: heard(opened)) is None
        is_done.set()
        thread.join()

    def test_a_thread_or_task_that_a_started_thread_starts_is_refused(self, opened: OpenSounds) -> None:
        """It may be a server's: then the call is another user's request."""

        async def task() -> float | None:
            return heard(opened)

        def silent() -> float | None:
            with opened.block(None):
                return heard(opened)

        def own() -> float | None:
            with opened.block(sounds(2)):
                return heard(opened)

        calls = [lambda: heard(opened), lambda: asyncio.run(task()), silent, own]
        results: list[Any] = []

        def serve() -> None:
            results.append(heard(opened))
            for index, call in enumerate(calls):
                try:
                    results.append(call() if index == 1 else in_a_thread(call))
                except RuntimeError as error:
                    results.append(str(error))

        with opened.block(sounds(1)):
            in_a_thread(serve)
        one, thread, in_a_task, *rest = results
        assert one == 1 and rest == [None, 2]
        for refused in (thread, in_a_task):
            assert "has started this thread or task" in refused and "open silence()" in refused

    @pytest.mark.parametrize("server", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
    def test_a_server_that_is_started_inside_serves_everybody(self, opened: OpenSounds, server: Any) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(repr(heard(opened)).encode())

        with opened.block(sounds(1)), server(("127.0.0.1", 0), Handler) as serving:
            thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            with socket.create_connection(serving.server_address, timeout=60) as request:
                answer = request.recv(100)
            serving.shutdown()
            thread.join()
        assert answer == b"None"

    def test_a_pool_serves_everybody(self, opened: OpenSounds) -> None:
        """Its workers hear nothing, also those started inside; with a context they hear its sound."""
        with ThreadPoolExecutor(2) as executor, ThreadPool(2) as pool:
            with opened.block(sounds(1)):
                assert executor.submit(heard, opened).result() is None
                context = contextvars.copy_context()
                assert executor.submit(context.run, heard, opened).result() == 1
            assert executor.submit(heard, opened).result() is None
            with opened.block(sounds(2)):
                assert pool.apply(heard, (opened,)) is None
        with opened.block(sounds(2)), ThreadPool(2) as pool:
            assert pool.apply(heard, (opened,)) is None

    def test_a_thread_whose_block_has_ended_is_told(self, opened: OpenSounds) -> None:
        go, results = threading.Event(), []

        def late() -> None:
            go.wait(60)
            with opened.block(None):
                results.append(heard(opened))
            with opened.block(sounds(2)):
                results.append(heard(opened))
            try:
                heard(opened)
            except RuntimeError as error:
                results.append(str(error))

        with opened.block(sounds(3)), opened.block(sounds(1)):
            thread = threading.Thread(target=late)
            thread.start()
        go.set()
        thread.join()
        assert results[:2] == [None, 2]
        assert "has ended" in results[2] and "silence()" in results[2]

    def test_a_silence_that_has_ended_binds_nobody(self, opened: OpenSounds) -> None:
        go, results = threading.Event(), []
        with opened.block(sounds(1)):
            with opened.block(None):
                thread = threading.Thread(target=lambda: (go.wait(60), results.append(heard(opened))))
                thread.start()
            go.set()
            thread.join()
        assert results == [None]

    def test_thread_start_is_left_as_it_was(self, opened: OpenSounds) -> None:
        stock = threading.Thread.start
        with opened.block(None):
            assert threading.Thread.start is stock
        with opened.block(sounds(1)):
            assert threading.Thread.start is not stock
        assert threading.Thread.start is stock

    def test_another_tool_that_wraps_thread_start_meanwhile(
        self, opened: OpenSounds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        with opened.block(sounds(1)):
            ours = threading.Thread.start

            def start(thread: threading.Thread) -> None:
                calls.append(thread)
                ours(thread)

            monkeypatch.setattr(threading.Thread, "start", start)
        for number in (2, 3):
            assert in_a_thread(lambda: heard(opened)) is None
            with opened.block(sounds(number)):
                assert in_a_thread(lambda: heard(opened)) == number
        assert len(calls) == 4
        monkeypatch.undo()
        with opened.block(sounds(4)):
            assert in_a_thread(lambda: heard(opened)) == 4


class TestTasks:
    def test_each_task_hears_its_own(self, opened: OpenSounds) -> None:
        async def request(number: float | None) -> list[float | None]:
            results = []
            with opened.block(sounds(number)) if number else contextlib.nullcontext():
                for _ in range(3):
                    await asyncio.sleep(0)
                    results.append(heard(opened))
                    results.append(await asyncio.to_thread(heard, opened))
            results.append(heard(opened))
            return results

        async def serve() -> list[list[float | None]]:
            return await asyncio.gather(request(1), request(None), request(2), request(None))

        assert asyncio.run(serve()) == [[1] * 6 + [None], [None] * 7, [2] * 6 + [None], [None] * 7]

    def test_a_task_hears_the_block_in_which_it_was_started(self, opened: OpenSounds) -> None:
        async def hear(delay: float) -> Any:
            await asyncio.sleep(delay)
            try:
                return heard(opened)
            except RuntimeError as error:
                return str(error)

        async def serve() -> tuple[Any, Any]:
            with opened.block(sounds(1)):
                inside, late = asyncio.create_task(hear(0)), asyncio.create_task(hear(0.05))
                first = await inside
            return first, await late

        first, late = asyncio.run(serve())
        assert first == 1 and "has ended" in late


class TestGenerators:
    def handler(self, opened: OpenSounds, number: float) -> Iterator[float | None]:
        with opened.block(sounds(number)):
            for _ in range(3):
                yield heard(opened)

    @contextlib.contextmanager
    def manager(self, opened: OpenSounds, number: float) -> Iterator[None]:
        with opened.block(sounds(number)):
            yield

    def handler_with_a_manager(self, opened: OpenSounds, number: float) -> Iterator[float | None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.manager(opened, number))
            for _ in range(3):
                yield heard(opened)

    def handler_with_a_class(self, opened: OpenSounds, number: float) -> Iterator[float | None]:
        class Opened:
            def __enter__(self) -> None:
                self.block = opened.block(sounds(number))
                self.block.__enter__()

            def __exit__(self, *error: object) -> None:
                self.block.__exit__(None, None, None)

        with Opened():
            for _ in range(3):
                yield heard(opened)

    @pytest.mark.parametrize("name", ["handler", "handler_with_a_manager", "handler_with_a_class"])
    def test_two_side_by_side(self, opened: OpenSounds, name: str) -> None:
        handler = getattr(self, name)
        assert list(zip(handler(opened, 1), handler(opened, 2), strict=True)) == [(1, 2)] * 3
        assert heard(opened) is None

    @pytest.mark.parametrize("name", ["handler", "handler_with_a_manager", "handler_with_a_class"])
    def test_each_step_in_a_context_or_thread_of_its_own(self, opened: OpenSounds, name: str) -> None:
        steps = getattr(self, name)(opened, 1)
        contexts = [contextvars.Context() for _ in range(2)]
        assert [context.run(next, steps) for context in contexts] == [1, 1]
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(next, steps).result() == 1
            assert executor.submit(next, steps, "end").result() == "end"
        assert heard(opened) is None

    def test_two_async_ones_side_by_side(self, opened: OpenSounds) -> None:
        async def handler(number: float) -> Any:
            with opened.block(sounds(number)):
                for _ in range(3):
                    yield heard(opened)

        async def serve() -> list[Any]:
            one, two = handler(1), handler(2)
            found = [(await anext(one), await anext(two)) for _ in range(3)]
            await one.aclose()
            await two.aclose()
            return [*found, heard(opened)]

        assert asyncio.run(serve()) == [(1, 2)] * 3 + [None]

    def test_a_loop_inside_a_generator_runs_everybodys_tasks(self, opened: OpenSounds) -> None:
        async def request() -> float | None:
            block = opened.block(sounds(1))
            block.__enter__()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            result = heard(opened)
            block.__exit__(None, None, None)
            return result

        async def other() -> float | None:
            return heard(opened)

        async def serve() -> list[float | None]:
            return await asyncio.gather(request(), other())

        def runner() -> Iterator[list[float | None]]:
            yield asyncio.run(serve())

        assert list(runner()) == [[1, None]]

    def test_a_call_beside_one_that_waits_is_told(self, opened: OpenSounds) -> None:
        steps = self.handler(opened, 1)
        assert next(steps) == 1
        with pytest.raises(RuntimeError, match="open in a generator that waits"):
            heard(opened)
        with opened.block(None):
            assert heard(opened) is None
        with opened.block(sounds(2)):
            assert heard(opened) == 2 and next(steps) == 1
        steps.close()
        assert heard(opened) is None

    def test_a_thread_that_it_started_keeps_its_own_sound(self, opened: OpenSounds) -> None:
        is_open, is_done = threading.Event(), threading.Event()

        def listen() -> None:
            with opened.block(sounds(2)):
                is_open.set()
                is_done.wait(60)

        def handler() -> Iterator[float | None]:
            with opened.block(sounds(1)):
                thread = threading.Thread(target=listen)
                thread.start()
                is_open.wait(60)
                yield heard(opened)
                is_done.set()
                thread.join()

        assert list(handler()) == [1]

    def test_one_that_is_never_finished(self, opened: OpenSounds) -> None:
        steps = self.handler(opened, 1)
        next(steps)
        del steps
        assert heard(opened) is None and not opened._blocks

    def test_a_contextmanager_is_a_block_of_its_user(self, opened: OpenSounds) -> None:
        with self.manager(opened, 1):
            assert heard(opened) == 1
            assert in_a_thread(lambda: heard(opened)) == 1
        assert heard(opened) is None


class TestModels:
    @pytest.fixture
    def soundclip(self, tiny_llava: Any) -> SoundCLIP:
        return patch(tiny_llava, TinyEncoder(), k=K)

    def test_silence_inside_a_sound(self, soundclip: SoundCLIP) -> None:
        model, inputs = soundclip.model, make_inputs([1])
        stock, words = scores(model, inputs), generate(model, inputs)
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            assert generate(model, inputs) != words
            with soundclip.silence() as same:
                assert same is soundclip
                assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
            assert generate(model, inputs) != words

    @pytest.mark.parametrize("sounding", [False, True])
    def test_a_running_generate_hears_what_it_began_with(self, soundclip: SoundCLIP, sounding: bool) -> None:
        """A sound that opens in its own context in the middle of it, and a block that ends."""
        from transformers import LogitsProcessorList

        model, inputs, (one, other) = soundclip.model, make_inputs([1]), make_sounds(2)
        block = soundclip.audio(one, sampling_rate=RATE) if sounding else soundclip.silence()
        with block:
            expected = generate(model, inputs)
        block = soundclip.audio(one, sampling_rate=RATE) if sounding else soundclip.silence()
        block.__enter__()
        late = soundclip.audio(other, sampling_rate=RATE)

        def meddle(ids: Any, scores: Any) -> Any:
            if ids.shape[1] == inputs["input_ids"].shape[1] + 1:
                block.__exit__(None, None, None)
                in_a_thread(late.__enter__)
            return scores

        assert generate(model, inputs, logits_processor=LogitsProcessorList([meddle])) == expected
        late.__exit__(None, None, None)

    def test_requests_with_and_without_sounds_on_a_pool(self, soundclip: SoundCLIP) -> None:
        model, inputs, clips = soundclip.model, make_inputs([1]), [None, *make_sounds(3), None]

        def answer(sound: Any) -> list[list[int]]:
            with (
                soundclip.audio(sound, sampling_rate=RATE) if sound is not None else contextlib.nullcontext()
            ):
                return generate(model, inputs)

        expected = [answer(sound) for sound in clips]
        assert len({str(words) for words in expected}) == 4
        with ThreadPoolExecutor(4) as executor:
            assert list(executor.map(answer, clips * 5)) == expected * 5
