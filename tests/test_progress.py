"""Progress of a job where no terminal shows a bar."""

import io
from collections.abc import Callable
from time import monotonic, sleep

import pytest

from llava_soundclip import running
from llava_soundclip.running import progress_bar, task_line


class FakeTime:
    """A clock, and the event that a ticker waits for: waiting moves the clock and lets the job do some work."""

    def __init__(self, *work: Callable[[], None]) -> None:
        self.now = 100.0
        self.work = list(work)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        if not self.work:
            return True
        self.work.pop(0)()
        return False


def test_a_line_every_ten_seconds_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeTime(
        lambda: None,
        lambda: bar.advance(captions, 8),
        lambda: bar.advance(captions, 16),
        lambda: bar.advance(captions, 400),
        lambda: bar.update(captions, completed=480),
        lambda: (bar.remove_task(captions), bar.add_task("scores", total=None)),
    )
    bar = progress_bar(shown=True, unit="captions")
    bar.get_time = lambda: fake.now
    captions = bar.add_task("captions", total=480)
    ticker = running.Ticker(bar._print)  # type: ignore[attr-defined]
    ticker._over = fake  # type: ignore[assignment]
    ticker.run()
    assert fake.now == 170
    assert capsys.readouterr().err.splitlines() == [
        "captions: 0 of 480, 10 s so far",
        "captions: 8 of 480, 20 s so far",  # a speed needs two steps
        "captions: 24 of 480, 5 min left",
        "captions: 424 of 480, 3 s left",
        "captions: 480 of 480, 50 s so far",
        "scores: 0 s so far",
    ]


def test_lines_come_while_a_step_takes_long_and_end_with_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_EVERY", 0.01)
    said = io.StringIO()
    with monkeypatch.context() as patched, progress_bar(shown=True) as bar:
        patched.setattr("sys.stderr", said)
        bar.add_task("loading", total=None)
        latest = monotonic() + 10
        while said.getvalue().count("\n") < 3 and monotonic() < latest:
            sleep(0.001)
    after = said.getvalue()
    assert set(after.splitlines()) == {"loading: 0 s so far"}
    assert said.getvalue() == after


def test_nothing_is_said_unless_it_shall_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_EVERY", 0.001)
    with progress_bar(shown=False) as bar:
        bar.advance(bar.add_task("captions", total=2))
        sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    bar = progress_bar(shown=False)
    now = 0.0
    bar.get_time = lambda: now
    bar.add_task("steps", total=None)
    now = seconds
    assert task_line(bar.tasks[0]) == f"steps: {text} so far"


def test_a_reader_who_left_stops_nothing() -> None:
    def call() -> None:
        raise BrokenPipeError

    ticker = running.Ticker(call)
    ticker._over = FakeTime(lambda: None)  # type: ignore[assignment]
    ticker.run()
