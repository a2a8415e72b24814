"""The judge, through the real openai client, against a server on loopback that does what servers do."""

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai")

from llava_soundclip.evaluation import judge as judge_package
from llava_soundclip.evaluation.judge import DIMENSIONS, PROMPT_HASH, Caption, Judge
from llava_soundclip.evaluation.judge import server as judge_server
from llava_soundclip.evaluation.judge.server import Pace
from tests.evaluation.judge_server import USAGE, JudgeServer, Reply, Request, completion, error, scores

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_server, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The client builds much at its first request, which would pass the tests' short timeouts."""
    with JudgeServer() as server:
        Judge("tiny", base_url=server.url).run([caption(1)], tmp_path_factory.mktemp("warm") / "judged.jsonl")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "judged.jsonl"


def caption(number: int, setting: str = "raw", text: str | None = None, **more: Any) -> Caption:
    text = f"text {number} of {len(setting)}" if text is None else text
    return Caption(f"clip-{number}", text, setting, **({"references": (f"a bell, {number}",)} | more))


def make(server: JudgeServer, **options: Any) -> Judge:
    return Judge("tiny", base_url=server.url, **({"timeout": 5, "repeat_share": 0} | options))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def first_then(first: Reply, then: Reply | None = None) -> Callable[[Request], Reply]:
    return lambda request: first if request.attempt == 1 else then or scores()


# Figures


def test_the_figures_are_those_of_the_scores(out: Path) -> None:
    given = {
        ("raw", 0): (5, 4, 3, 2, 5, 4),
        ("raw", 1): (3, 4, 3, 2, 4, 2),
        ("raw", 2): (1, 1, 3, 5, 5, 3),
        ("projected", 0): (2, 4, 1, 2, 5, 3),
        ("projected", 1): (3, 1, 2, 2, 5, 1),
    }
    captions = [caption(number, setting, f"{setting[0]}{number}") for setting, number in given]
    by_text = {f"{setting[0]}{number}": values for (setting, number), values in given.items()}

    def script(request: Request) -> Reply:
        return scores(**dict(zip(DIMENSIONS, by_text[request.caption], strict=True)))

    with JudgeServer(script) as server:
        found = make(server).run(captions, out)

    for column, name in enumerate(DIMENSIONS):
        raw = [given["raw", number][column] for number in range(3)]
        projected = [given["projected", number][column] for number in range(2)]
        interval = found.scores["raw"][name]
        assert interval.value == pytest.approx(sum(raw) / 3) and interval.n == 3
        assert min(raw) <= interval.low <= interval.value <= interval.high <= max(raw)
        assert found.scores["projected"][name].value == pytest.approx(sum(projected) / 2)
        paired = found.differences["raw", "projected"][name]
        assert paired.n == 2
        assert paired.value == pytest.approx((raw[0] - projected[0] + raw[1] - projected[1]) / 2)
    assert found.scores["raw"]["usefulness"].value == 3
    assert found.differences["raw", "projected"]["audio_quality"].value == 1.5
    assert found.counts == {"raw": {"scored": 3}, "projected": {"scored": 2}}
    assert found.consistency == {}
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["differences"]["raw - projected"]["audio_quality"]["value"] == 1.5
    assert plain["judge"]["prompt"] == PROMPT_HASH and plain["judge"]["served_as"] == ["tiny-2026"]
    assert plain["judge"]["host"] == "127.0.0.1" and KEY not in json.dumps(plain)


def test_consistency_is_that_of_the_captions_asked_twice(out: Path) -> None:
    twice = {"a": (1, 2), "b": (3, 3), "c": (5, 4), "d": (2, 2)}
    captions = [caption(number, text=text) for number, text in enumerate(twice)]

    def script(request: Request) -> Reply:
        return scores(audio_quality=twice[request.caption][request.attempt - 1])

    with JudgeServer(script) as server:
        found = make(server, repeat_share=1, concurrency=1).run(captions, out)
        order = Counter(row["setting"] for row in rows(out)[1:])
    assert len(server.requests) == 8 and order == {"raw": 8}
    figures = found.consistency["audio_quality"]
    assert (figures.equal.value, figures.equal.n, figures.difference.value) == (0.5, 4, 0.5)
    first, second = np.array(list(twice.values())).T
    by_chance = np.mean([(a - b) ** 2 for a in first for b in second])
    assert figures.kappa == pytest.approx(1 - np.mean((first - second) ** 2) / by_chance)
    assert found.consistency["fluency"].kappa is None and found.consistency["fluency"].equal.value == 1
    of_first_answers = {
        row["id"]: row["scores"]["audio_quality"] for row in rows(out)[1:] if not row["repeat"]
    }
    assert found.scores["raw"]["audio_quality"].value == np.mean(list(of_first_answers.values()))


@pytest.mark.parametrize(("share", "asked"), [(0, 20), (0.01, 21), (0.25, 25), (1, 40)])
def test_a_share_is_asked_twice(out: Path, share: float, asked: int) -> None:
    captions = [caption(number) for number in range(20)]
    with JudgeServer() as server:
        judge = make(server, repeat_share=share)
        assert judge.estimate(captions, out).requests == asked
        judge.run(captions, out)
    assert len(server.requests) == asked
    assert max(Counter(request.text for request in server.requests).values()) == (2 if share else 1)


# What is sent


def test_the_judge_is_blind(out: Path) -> None:
    captions = [caption(number, s, f"text {i}-{number}") for i, s in enumerate("pq") for number in range(20)]
    captions = [
        Caption(c.id, c.text, {"p": "zraw", "q": "zprojected"}[c.setting], c.references) for c in captions
    ]

    def order(captions: list[Caption], **options: Any) -> list[str]:
        out.unlink(missing_ok=True)
        with JudgeServer() as server:
            make(server, concurrency=1, repeat_share=0.2, **options).run(captions, out)
        for request in server.requests:
            assert not any(word in request.raw.decode() for word in ("zraw", "zprojected", "clip-"))
        return [request.caption for request in server.requests]

    first = order(captions)
    changes = sum(before[5] != after[5] for before, after in pairwise(first))  # between settings
    assert 10 < changes < 38  # of 47: neither one after the other nor in turns
    assert order(captions[::-1]) == first
    assert order(captions, seed=1) != first


def test_what_a_request_holds(out: Path, tmp_path: Path) -> None:
    picture = tmp_path / "raw-frame.png"
    picture.write_bytes(b"not looked at here")
    with JudgeServer() as server:
        make(server).run(
            [caption(1, text="A {bell} rings.", references=("one", "two"), picture=picture)], out
        )
    (request,) = server.requests
    body = request.body
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("tiny", 0)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == list(DIMENSIONS)
    assert schema["schema"]["properties"]["fluency"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    system, user = body["messages"]
    assert all(f"- {name}: " in system["content"] for name in DIMENSIONS)
    assert user["content"][0]["text"] == (
        "<references>\n- one\n- two\n</references>\n<description>\nA {bell} rings.\n</description>"
    )
    assert user["content"][1]["image_url"]["url"] == "data:image/png;base64,bm90IGxvb2tlZCBhdCBoZXJl"


def test_the_server_may_choose_the_temperature(out: Path) -> None:
    with JudgeServer() as server:
        make(server, temperature=None).run([caption(1)], out)
    assert "temperature" not in server.requests[0].body


def test_the_hash_is_that_of_the_file() -> None:
    file = Path(judge_package.__file__).parent / "prompt.md"
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(PROMPT_HASH)


# What can't be scored

GOOD = dict.fromkeys(DIMENSIONS, 3)


NO_SCORES = [
    (completion(None, refusal="I can't."), "refused", 1),
    (completion(None, finish_reason="content_filter"), "filtered", 1),
    (error(400, "policy", code="content_filter"), "filtered", 1),
    (completion('{"audio_quality": 3, "vis', finish_reason="length"), "truncated", 2),
    (completion(json.dumps(GOOD), finish_reason="length"), "truncated", 2),
    (completion("Nice caption! 5/5"), "not_json", 2),
    (completion(""), "not_json", 2),
    (completion("```json\n" + json.dumps(GOOD) + "\n```"), "not_json", 2),
    (completion("[" * 100_000), "not_json", 2),
    (completion("[3, 3, 3, 3, 3, 3]"), "not_the_schema", 2),
    (completion(json.dumps({k: 3 for k in DIMENSIONS[1:]})), "not_the_schema", 2),
    (completion(json.dumps(GOOD | {"overall": 3})), "not_the_schema", 2),
    (scores(fluency=3.0), "not_the_schema", 2),
    (scores(fluency="3"), "not_the_schema", 2),
    (scores(fluency=True), "not_the_schema", 2),
    (scores(fluency=None), "not_the_schema", 2),
    (scores(fluency=float("nan")), "not_the_schema", 2),
    (scores(fluency=0), "out_of_range", 2),
    (scores(fluency=6), "out_of_range", 2),
    (completion(None), "not_a_completion", 2),
    (Reply(body=b"<html>maintenance</html>"), "not_a_completion", 2),
    (Reply(body=b"<html>oops</html>", headers={"content-type": "text/html"}), "not_a_completion", 2),
    (Reply(body=b"\xff\xfe\x00"), "not_a_completion", 2),
    (Reply(body=b""), "not_a_completion", 2),
    (Reply(body=b"[]"), "not_a_completion", 2),
    (Reply(body=b"null"), "not_a_completion", 2),
    (Reply(body=b'"text"'), "not_a_completion", 2),
    (Reply(body=b'{"choices": []}'), "not_a_completion", 2),
    (Reply(body=b'{"choices": [{"message": "hello"}]}'), "not_a_completion", 2),
    (Reply(body=b'{"error": {"message": "no"}}'), "not_a_completion", 2),
]


def test_what_is_no_score_is_counted_and_never_scored(out: Path) -> None:
    captions = [caption(number) for number in range(len(NO_SCORES) + 1)]
    replies = {captions[number].text: reply for number, (reply, _, _) in enumerate(NO_SCORES)}
    with JudgeServer(lambda request: replies.get(request.caption, scores(4))) as server:
        found = make(server, concurrency=1).run(captions, out)
        asked = Counter(request.caption for request in server.requests)
        make(server).run(captions, out)  # they were judged, if to no end: they aren't asked for again
        assert len(server.requests) == asked.total()
    outcomes = {row["id"]: row["outcome"] for row in rows(out)[1:]}
    for number, (reply, outcome, times) in enumerate(NO_SCORES):
        assert (outcomes[f"clip-{number}"], asked[captions[number].text]) == (outcome, times), reply
    expected = Counter(outcome for _, outcome, _ in NO_SCORES)
    assert found.counts == {"raw": {"scored": 1, **expected}}
    assert found.scores["raw"]["fluency"].n == 1 and found.scores["raw"]["fluency"].value == 4
    assert all((row["outcome"] == "scored") == (row["scores"] is not None) for row in rows(out)[1:])


def test_a_malformed_answer_is_asked_for_once_more(out: Path) -> None:
    with JudgeServer(first_then(scores(9), scores(2))) as server:
        found = make(server, input_price=2.0, output_price=10.0).run([caption(1)], out)
    assert found.counts == {"raw": {"scored": 1}} and found.scores["raw"]["fluency"].value == 2
    usage = found.usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (2, 800, 80)
    assert usage.cost == pytest.approx((800 * 2 + 80 * 10) / 1e6)


def test_a_setting_of_which_nothing_was_scored_has_no_figures(out: Path) -> None:
    with JudgeServer(lambda request: completion(None, refusal="no")) as server:
        found = make(server, repeat_share=1).run([caption(1), caption(1, "projected", "another")], out)
    assert found.scores == {"raw": {}, "projected": {}}
    assert found.differences == {} and found.consistency == {}
    json.dumps(found.as_dict())


# What passes, and what doesn't


PASSING = [
    error(429),
    error(429, retry_after="0"),
    error(429, retry_after="soon"),
    error(500),
    error(503, retry_after_ms="20"),
    error(408),
    error(409),
    Reply(502, b"<html>bad gateway</html>", {"content-type": "text/html"}),
    Reply(cut=True),
    Reply(never=True),
    Reply(every=0.1, body=b"1" * 20),
]


def test_what_passes_is_tried_again(out: Path) -> None:
    captions = [caption(number) for number in range(len(PASSING))]
    replies = {captions[number].text: reply for number, reply in enumerate(PASSING)}
    with JudgeServer(
        lambda request: replies[request.caption] if request.attempt == 1 else scores()
    ) as server:
        found = make(server, timeout=1, concurrency=2).run(captions, out)
    assert found.counts == {"raw": {"scored": len(PASSING)}} and found.failures == {}
    asked = Counter(request.caption for request in server.requests)
    assert all(asked[one.text] >= 2 for one in captions), asked


def test_retry_after_holds_for_all_requests(out: Path) -> None:
    busy = error(429, retry_after="0.4")
    with JudgeServer(lambda request: busy if len(server.requests) == 1 else scores()) as server:
        make(server, concurrency=1).run([caption(number) for number in range(3)], out)
    assert server.requests[1].at - server.requests[0].at >= 0.4
    headers = {"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}
    assert judge_server._retry_after(headers) > 1e9  # type: ignore[operator]
    assert judge_server._retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) is None
    assert judge_server._retry_after({"retry-after": "some day, GMT"}) is None


@pytest.mark.parametrize("reply", [Reply(never=True), error(500), Reply(every=0.05, body=b"1" * 100)])
def test_what_never_answers_fails_and_the_run_goes_on(out: Path, reply: Reply) -> None:
    captions = [caption(number) for number in range(4)]
    bad = captions[2].text
    with JudgeServer(lambda request: reply if request.caption == bad else scores()) as server:
        judge = make(server, timeout=0.6, max_retries=1, concurrency=1)
        found = judge.run(captions, out)
        assert found.counts == {"raw": {"scored": 3, "failed": 1}}
        assert list(found.failures) == [("clip-2", "raw")]
        before = len(server.requests)
        server.script = lambda request: scores()
        assert judge.estimate(captions, out).requests == 1
        found = judge.run(captions, out)
    assert {request.caption for request in server.requests[before:]} == {bad}
    assert found.counts == {"raw": {"scored": 4}} and found.failures == {}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (error(401, f"Incorrect key {KEY}"), "is OPENAI_API_KEY right.*Incorrect key"),
        (error(403), "refuses"),
        (error(404, "no such model"), "is the model's name right.*no such model"),
        (error(429, "out of money", code="insufficient_quota"), "refuses.*out of money"),
        (error(429, retry_after="3600"), "wait 3600 s"),
        (error(400, "json_schema isn't known"), "rejects such requests.*json_schema"),
    ],
)
def test_what_does_not_pass_stops_the_run(out: Path, reply: Reply, says: str) -> None:
    with JudgeServer(lambda request: reply) as server:
        with pytest.raises(RuntimeError, match=says) as raised:
            make(server, concurrency=2).run([caption(number) for number in range(9)], out)
        assert len(server.requests) <= 2
    assert KEY not in str(raised.value) and KEY not in out.read_text()


def test_a_request_that_is_rejected_among_others_fails_alone(out: Path) -> None:
    captions = [caption(number) for number in range(4)]
    with JudgeServer(lambda request: scores() if len(server.requests) < 3 else error(400, "bad")) as server:
        found = make(server, concurrency=1).run(captions, out)
    assert found.counts == {"raw": {"scored": 2, "failed": 2}}
    assert len(server.requests) == 4


def test_a_dead_server_stops_the_run(out: Path) -> None:
    captions = [caption(number) for number in range(30)]
    with (
        JudgeServer(lambda request: error(500, "dead")) as server,
        pytest.raises(RuntimeError, match="last 20 captions got no answer.*dead"),
    ):
        make(server, max_retries=0, concurrency=1).run(captions, out)
    assert len(server.requests) == 20


# Limits


def test_no_more_requests_at_a_time_than_asked_for(out: Path) -> None:
    with JudgeServer(lambda request: Reply(body=scores().body, after=0.05)) as server:
        make(server, concurrency=3).run([caption(number) for number in range(12)], out)
    assert server.most_at_once == 3


def test_requests_and_retries_keep_to_the_rate(out: Path) -> None:
    with JudgeServer(first_then(error(500))) as server:
        make(server, requests_per_minute=1200).run([caption(number) for number in range(4)], out)
    assert len(server.requests) == 8
    times = [request.at for request in server.requests]
    assert times[-1] - times[0] >= 6 * 0.05  # 60 / 1200 s apart; the first may have come late


def test_tokens_keep_to_the_rate() -> None:
    async def turns(pace: Pace) -> float:
        start = time.monotonic()
        for _ in range(4):
            await pace.turn(10)
        return time.monotonic() - start

    assert asyncio.run(turns(Pace(None, 10_000))) >= 3 * 0.06
    assert asyncio.run(turns(Pace(1000, 1_000_000))) >= 3 * 0.06
    assert asyncio.run(turns(Pace(None, None))) < 0.06


# Going on


def test_a_half_written_line_is_dropped(out: Path) -> None:
    captions = [caption(number) for number in range(4)]
    with JudgeServer() as server:
        whole = make(server).run(captions, out)
        out.write_bytes(out.read_bytes()[:-20])
        assert make(server).estimate(captions, out).requests == 1
        again = make(server).run(captions, out)
    assert len(server.requests) == 5
    assert again.as_dict() == whole.as_dict()
    assert len(rows(out)) == 5


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_asks_for_the_rest_only(out: Path, how: signal.Signals) -> None:
    # A shell's background jobs, CI's among them, are started with SIGINT ignored, and their children inherit that.
    code = f"""
import signal
from llava_soundclip.evaluation.judge import Caption, Judge
signal.signal(signal.SIGINT, signal.default_int_handler)
captions = [Caption(f"clip-{{n}}", f"text {{n}} of 3", "raw", (f"a bell, {{n}}",)) for n in range(12)]
Judge("tiny", base_url="URL", repeat_share=0, concurrency=2).run(captions, {str(out)!r})
"""
    slow = Reply(body=scores().body, after=0.1)
    with JudgeServer(lambda request: slow if request.attempt == 1 else scores()) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code.replace("URL", server.url)], stderr=subprocess.PIPE
        )
        with process:
            while process.poll() is None and (not out.exists() or len(out.read_bytes().splitlines()) < 5):
                time.sleep(0.01)
            process.send_signal(how)
            said = process.communicate()[1]
        assert process.returncode != 0 and (how == signal.SIGKILL or b"KeyboardInterrupt" in said)
        kept = {row["id"] for row in (json.loads(line) for line in out.read_bytes().split(b"\n")[1:-1])}
        assert 4 <= len(kept) < 12
        before = len(server.requests)
        found = make(server).run([caption(number) for number in range(12)], out)
    asked = {int(request.caption.split()[1]) for request in server.requests[before:]}
    assert asked == {number for number in range(12) if f"clip-{number}" not in kept}
    assert found.counts == {"raw": {"scored": 12}} and len(rows(out)) == 13


def test_a_finished_file_needs_neither_server_nor_key(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server:
        judge = make(server)
        found = judge.run([caption(1), caption(2)], out)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert judge.run([caption(2), caption(1)], out).as_dict() == found.as_dict()
    assert judge.estimate([caption(1)], out).requests == 0


def test_a_caption_that_changed_is_asked_for_again(out: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frame.jpg"
    picture.write_bytes(b"one")
    with JudgeServer() as server:
        judge = make(server)
        judge.run([caption(1), caption(2, picture=picture)], out)
        judge.run([caption(1, text="other"), caption(2, picture=picture)], out)
        assert [request.caption for request in server.requests[2:]] == ["other"]
        picture.write_bytes(b"two")
        judge.run([caption(1, text="other"), caption(2, picture=picture)], out)
        assert len(server.requests) == 4


def test_a_file_of_another_judge_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server:
        make(server).run([caption(1)], out)
        other = Judge("large", base_url=server.url, temperature=1)
        for ask in (other.run, other.estimate):
            with pytest.raises(ValueError, match="model 'tiny', not 'large', temperature 0.0, not 1: give"):
                ask([caption(1)], out)
        monkeypatch.setattr("llava_soundclip.evaluation.judge.run.PROMPT_HASH", "0123")
        with pytest.raises(ValueError, match=f"prompt '{PROMPT_HASH}', not '0123'"):
            make(server).run([caption(1)], out)
        assert len(server.requests) == 1


@pytest.mark.parametrize("line", [b"hello", b"[]", b'{"id": 1}'])
@pytest.mark.parametrize("place", [0, 1])
def test_a_file_of_something_else_is_refused(out: Path, line: bytes, place: int) -> None:
    with JudgeServer() as server:
        make(server).run([caption(1)], out)
        lines = out.read_bytes().split(b"\n")
        lines[place] = line
        out.write_bytes(b"\n".join(lines))
        with pytest.raises(ValueError, match=f"line {place + 1}: this isn't a judge's answer"):
            make(server).run([caption(1)], out)
    assert out.read_bytes() == b"\n".join(lines)


# Cost


def test_the_cost_before_and_after(out: Path) -> None:
    captions = [caption(number) for number in range(10)]
    with JudgeServer() as server:
        judge = make(server, input_price=2.5, output_price=10.0)
        before = judge.estimate(captions, out)
        found = judge.run(captions, out)
    assert before.requests == 10 and 3000 < before.prompt_tokens < 8000 and before.completion_tokens == 500
    assert before.cost == pytest.approx((before.prompt_tokens * 2.5 + 500 * 10) / 1e6)
    assert found.usage.prompt_tokens == 10 * USAGE["prompt_tokens"]
    assert found.usage.cost == pytest.approx((4000 * 2.5 + 400 * 10) / 1e6)
    assert str(found.usage) == "10 requests, 4,000 tokens in and 400 out, cost 0.01"


def test_tokens_that_the_server_does_not_tell_are_said_to_lack(out: Path) -> None:
    with JudgeServer(lambda request: completion(json.dumps(GOOD), usage=None)) as server:
        usage = make(server).run([caption(1)], out).usage
    assert (usage.requests, usage.prompt_tokens, usage.unreported, usage.cost) == (1, 0, 1, None)
    assert str(usage) == "1 requests, 0 tokens in and 0 out (without 1 requests)"


# Use


def test_it_runs_where_a_loop_is_running(out: Path) -> None:
    async def notebook() -> Any:
        return make(server).run([caption(1)], out)

    with JudgeServer() as server:
        assert asyncio.run(notebook()).counts == {"raw": {"scored": 1}}


def test_the_address_may_come_from_the_environment(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with JudgeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        Judge("tiny").run([caption(1)], out)
    assert len(server.requests) == 2  # one is a repeat
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        Judge("gpt-4o").run([caption(1)], out.with_name("other.jsonl"))
    assert not out.with_name("other.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repeat_share": 1.5}, "repeat_share"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout": 0}, "timeout"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"tokens_per_minute": float("nan")}, "tokens_per_minute"),
        ({"input_price": 1.0}, "output_price"),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Judge("tiny", **options)


def test_captions_that_can_not_be_judged(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a reference or a picture"):
        Caption("a", "text")
    with pytest.raises(TypeError, match="tuple of texts"):
        Caption("a", "text", references="one")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a picture must be .jpg"):
        Caption("a", "text", picture=tmp_path / "clip.mp4")
    with pytest.raises(FileNotFoundError, match="no picture"):
        Caption("a", "text", picture=tmp_path / "frame.png")
    with pytest.raises(ValueError, match="clip 'clip-1' has 2 captions in setting 'raw'"):
        Judge("tiny").estimate([caption(1), caption(1, text="other")], out)
    with pytest.raises(ValueError, match="no caption"):
        Judge("tiny").estimate([], out)
