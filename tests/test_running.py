"""Working through many items where one may be bad, and telling which."""

from llava_soundclip.running import failures_text, work_through


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
