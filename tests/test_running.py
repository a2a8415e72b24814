"""Working through many items where one may be bad, and telling which."""

import signal
import threading

import pytest

from llava_soundclip.running import (
    failures_text,
    interrupts_held,
    stop_code,
    stopped_by_signals,
    work_through,
)


@pytest.fixture(autouse=True)
def stock_handlers():
    """As in a process of its own: Ray handles SIGTERM after its start, and nohup and `&` ignore other signals."""
    stock = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in stock.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_batch_that_fails_is_tried_one_by_one():
    batches = []

    def ask(batch):
        batches.append(list(batch))
        for item in batch:
            if "bad" in item:
                raise ValueError(f"{item}: it has no sound")
            if "odd" in item:
                raise RuntimeError("out of memory")
        return [item.upper() for item in batch]

    result = list(work_through(["a", "bad b", "c", "d", "odd e"], ask, 2))
    assert [list(results) for results, _ in result] == [["a"], ["c", "d"], []]
    assert [failed for _, failed in result] == [
        {"bad b": "bad b: it has no sound"},
        {},
        {"odd e": "out of memory"},
    ]
    assert batches == [["a", "bad b"], ["a"], ["bad b"], ["c", "d"], ["odd e"]]


def test_an_error_without_words_has_its_name():
    def ask(batch):
        raise KeyError

    assert list(work_through(["a"], ask, 1)) == [({}, {"a": "KeyError"})]


def test_too_few_results_are_an_error_not_a_shift():
    assert list(work_through(["a", "b"], lambda batch: ["one"] if len(batch) > 1 else ["right"], 2)) == [
        ({"a": "right", "b": "right"}, {})
    ]


def test_a_clip_is_named_once():
    bad = {"a.mp4": "a.mp4: it has no sound", "b.mp4": "out of memory"}
    assert failures_text(bad, 5, "could not be captioned").split("\n") == [
        "2 of 5 clips could not be captioned:",
        "  a.mp4: it has no sound",
        "  b.mp4: out of memory",
    ]


def test_clips_that_fail_alike_are_one_line_and_their_names():
    bad = {f"clips/{i:02}.wav": f"/data/clips/{i:02}.wav: it has no pictures" for i in range(30)}
    lines = failures_text(bad | {"x.mp4": "x.mp4: cut"}, 40, "have no features").split("\n")
    assert lines[:3] == ["31 of 40 clips have no features:", "  x.mp4: cut", "  30 clips: it has no pictures"]
    assert lines[3] == "    clips/00.wav" and len(lines) == 3 + 30


def test_sigterm_is_as_ctrl_c_inside_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert stop_code() == 143 and signal.getsignal(signal.SIGTERM) == before
    with stopped_by_signals():
        assert stop_code() == 130


def test_a_second_sigterm_does_not_stop_the_saving():
    saved = []
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            saved.append(1)
    assert saved == [1]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interruption_is_held_until_the_block_ends():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held() as is_held:
        assert not is_held()
        signal.raise_signal(signal.SIGINT)
        done.append(is_held())
    assert done == [True]
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(), interrupts_held():
        signal.raise_signal(signal.SIGTERM)
    assert stop_code() == 143


def test_a_second_interruption_is_not_held():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("too late")
    assert done == []


def test_other_threads_hold_nothing():
    held = []

    def work():
        with stopped_by_signals(), interrupts_held() as is_held:
            held.append(is_held())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert held == [False]
