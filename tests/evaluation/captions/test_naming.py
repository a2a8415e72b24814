"""Naming: what counts as named, what isn't there, and what is left out."""

import json

import numpy as np
import pytest

from llava_soundclip.evaluation.captions import (
    Caption,
    Things,
    read_captions,
    read_sources,
    read_things,
    score,
)
from llava_soundclip.evaluation.captions.naming import NAMING, naming

THINGS = {
    "a": Things(("dog",), ("apple", "mug")),
    "b": Things(("fire truck",), (), ("fire truck",)),
    "c": Things((), ("cat",)),
}
SEEN = ("sounding named", "silent named", "absent named")


def test_what_counts_as_named():
    texts = {
        "A Dog barks beside apples.": (1, 1, 0),
        "I see a mug.": (0, 1, 0),
        "A dogma, an appletree.": (0, 0, 0),
        "A cat and a dog.": (1, 0, 1),
        "": (0, 0, 0),
    }
    found, about = naming(list(texts), ["a"] * len(texts), THINGS)
    for row, expected in enumerate(texts.values()):
        assert tuple(found[name][row] for name in SEEN) == expected
        assert found["played named"][row] == expected[0]
    assert np.isnan(found["unseen named"]).all()
    assert tuple(found) == NAMING and about["things"] == 5


def test_what_is_only_heard_and_what_another_sound_says():
    texts = ["A fire truck passes.", "A dog.", "A cat and a fire truck."]
    found, _ = naming(texts, ["b", "b", "c"], THINGS, ["b", "a", "b"])
    assert found["unseen named"][:2].tolist() == [1, 0] and np.isnan(found["unseen named"][2])
    assert found["played named"].tolist() == [1, 1, 1]
    assert found["absent named"].tolist() == [0, 0, 0]  # what is played isn't absent
    noise, _ = naming(texts, ["b", "b", "c"], THINGS, [None, None, None])
    assert np.isnan(noise["played named"]).all() and noise["absent named"].tolist() == [0, 1, 1]


def test_rows_say_whose_sound_was_played(tmp_path):
    file = tmp_path / "captions.jsonl"
    rows = [
        {"id": "a", "caption": "", "setting": "own"},
        {"id": "a", "caption": "", "setting": "another", "control": "another", "heard": "b"},
        {"id": "a", "caption": "", "setting": "noise", "control": "noise"},
        {"id": "a", "caption": "", "setting": "random", "control": "random"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [caption.played for caption in read_captions(file)] == ["a", "b", None, "a"]
    captions = [Caption("a", "A dog.", heard="z")]
    with pytest.raises(ValueError, match="but 1 of 2 have neither: z"):
        score(captions, {}, ["naming"], things=THINGS)


def test_intervals_are_over_sources(tmp_path):
    file = tmp_path / "refs.jsonl"
    rows = [{"id": str(n), "references": ["x"], "source": f"film {n // 10}"} for n in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    sources = read_sources(file)
    assert len(set(sources.values())) == 6
    things = {clip: Things(("dog",)) for clip in sources}
    captions = [
        Caption(clip, "A dog." if number % 2 else "A cat.", setting)
        for clip, source in sources.items()
        for setting, number in (("raw", int(source[-1])), ("projected", 1))
    ]
    over_films = score(captions, {}, ["naming"], things=things, sources=sources)
    over_clips = score(captions, {}, ["naming"], things=things)
    wide, narrow = (scores.figures["sounding named"]["raw"] for scores in (over_films, over_clips))
    assert (wide.value, wide.n, narrow.value, narrow.n) == (0.5, 6, 0.5, 60)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    apart = over_films.difference("sounding named", "projected", "raw")
    assert (apart.value, apart.n) == (0.5, 6)
    rows[1]["source"] = 3
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "source": "other"}])))
    with pytest.raises(ValueError, match=r'line 2 has another "source" than a text.*; line 61 has'):
        read_sources(file)


def test_bleu_of_sources_is_that_of_their_captions_together():
    texts, references = (
        ["a dog barks", "a cat sat there", "rain"],
        ["a dog barks loudly", "a cat sat", "rain"],
    )
    captions = [Caption(str(n), text) for n, text in enumerate(texts)]
    known = {str(n): [text] for n, text in enumerate(references)}
    alone = score(captions, known, ["bleu"])
    together = score(captions, known, ["bleu"], sources=dict.fromkeys(known, "one film"))
    (one,), (other,) = (scores.figures["BLEU"].values() for scores in (alone, together))
    assert one.value == pytest.approx(other.value) and (one.n, other.n) == (3, 1)
    assert other.low == other.value == other.high


def test_clips_without_a_sounding_or_silent_thing_are_left_out():
    captions = [
        Caption("a", "A dog and a mug.", "raw"),
        Caption("b", "A fire truck.", "raw"),
        Caption("c", "A dog.", "raw"),
        Caption("b", "A cat.", "projected"),
    ]
    scores = score(captions, {}, ["naming"], things=THINGS)
    assert scores.figures["sounding named"]["raw"].n == 2  # c has nothing that sounds
    assert scores.figures["sounding named"]["raw"].value == 1
    assert scores.figures["silent named"]["raw"].value == 0.5
    assert scores.figures["absent named"]["raw"].value == pytest.approx(1 / 3)
    assert "projected" not in scores.figures["silent named"]
    assert scores.difference("absent named", "projected", "raw").value == 1
    with pytest.raises(ValueError, match="no clip has silent named in both"):
        scores.difference("silent named", "projected", "raw")
    json.dumps(scores.as_dict())
    assert np.isnan(scores.per_clip["silent named"]["projected"]).all()


def test_reading_and_what_is_refused(tmp_path):
    file = tmp_path / "refs.jsonl"
    rows = [{"id": 1, "references": ["x"], "sounding": ["dog"]}, {"id": 2, "silent": ["cat"], "sounding": []}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read_things(file) == {"1": Things(("dog",)), "2": Things((), ("cat",))}
    file.write_text(json.dumps({"id": 1, "references": ["x"]}))
    assert read_things(file) == {}
    file.write_text("\n".join(map(json.dumps, [rows[0], {"id": 2, "references": ["y"]}])))
    with pytest.raises(ValueError, match='line 2 has neither "sounding" nor "silent"'):
        read_things(file)
    file.write_text(json.dumps({"id": 1, "sounding": "dog"}))
    with pytest.raises(ValueError, match="no lists of texts"):
        read_things(file)
    file.write_text(json.dumps({"id": 1, "sounding": ["dog"], "unseen": ["dog", "cat"]}))
    with pytest.raises(ValueError, match='things in "unseen" that aren\'t in "sounding"'):
        read_things(file)
    with pytest.raises(ValueError, match="but 1 of 1 have neither: z"):
        score([Caption("z", "A dog.")], {}, ["naming"], things=THINGS)
