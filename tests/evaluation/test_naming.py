"""Naming: what counts as named, what isn't there, and what is left out."""

import json

import numpy as np
import pytest

from llava_soundclip.evaluation.captions import Caption, Things, read_things, score
from llava_soundclip.evaluation.captions.naming import NAMING, naming

THINGS = {"a": Things(("dog",), ("apple", "mug")), "b": Things(("fire truck",)), "c": Things((), ("cat",))}


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
        assert tuple(found[name][row] for name in NAMING) == expected
    assert about["things"] == 5


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
    with pytest.raises(ValueError, match="but 1 of 1 have neither: z"):
        score([Caption("z", "A dog.")], {}, ["naming"], things=THINGS)
