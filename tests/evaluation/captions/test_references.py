"""References that belong to captions by name."""

import json

import pytest

from llava_soundclip.evaluation.captions import evaluate_captions
from llava_soundclip.evaluation.captions.references import match_ids


def test_ids_match_by_name_where_nothing_else_can_be_meant():
    assert match_ids(["clips/a.mp4", "b.mp4", "c"], ["a.mp4", "far/clips/b.mp4", "c", "d"]) == {
        "a.mp4": "clips/a.mp4",
        "far/clips/b.mp4": "b.mp4",
    }
    assert match_ids(["./a.mp4", "sets/b/c.mp4"], ["clips/a.mp4", "b/c.mp4"]) == {
        "clips/a.mp4": "./a.mp4",
        "b/c.mp4": "sets/b/c.mp4",
    }
    # The end of a name is no name, and the same name elsewhere is another clip.
    assert match_ids(["a.mp4", "one/b.mp4"], ["xa.mp4", "other/b.mp4"]) == {}
    # An equal id comes first, for the clip and for the reference.
    assert match_ids(["a.mp4", "x/a.mp4"], ["a.mp4"]) == {}
    assert match_ids(["a.mp4"], ["a.mp4", "x/a.mp4"]) == {}


def test_ids_that_could_be_several_are_named():
    with pytest.raises(ValueError, match=r"clip 'a\.mp4' may match 'x/a\.mp4' or 'y/a\.mp4'"):
        match_ids(["a.mp4"], ["x/a.mp4", "y/a.mp4"])
    with pytest.raises(ValueError, match=r"reference 'a\.mp4' may match 'x/a\.mp4' or 'y/a\.mp4'"):
        match_ids(["x/a.mp4", "y/a.mp4"], ["a.mp4"])


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_captions_are_scored_by_references_of_their_name(tmp_path):
    said = write(
        tmp_path / "captions.jsonl",
        {"id": "clips/a.mp4", "caption": "a dog barks very loudly", "heard": "clips/b.mp4"},
        {"id": "clips/b.mp4", "caption": "a cat", "heard": "clips/a.mp4"},
    )
    refs = [
        {"id": "a.mp4", "references": ["a dog barks very loudly"], "sounding": ["dog"], "source": "one"},
        {"id": "b.mp4", "references": ["a cat meows at the door"], "sounding": ["cat"], "source": "one"},
    ]
    found = evaluate_captions(said, write(tmp_path / "refs.jsonl", *refs), ("rouge",))
    clip = found["clips"]["clips/a.mp4"]
    assert clip["references"] == ["a dog barks very loudly"]
    assert clip["scores"]["ROUGE-1"] == {"captions": pytest.approx(1)}
    assert (clip["scores"]["sounding named"], clip["scores"]["played named"]) == (
        {"captions": 1},
        {"captions": 0},
    )
    assert found["metrics"]["ROUGE-1"]["figures"]["captions"]["n"] == 1  # both are of one source
    assert found["settings"]["captions"]["missing"] == []
    refs[1]["id"] = "c.mp4"
    del refs[0]["sounding"], refs[1]["sounding"]
    with pytest.raises(ValueError, match="clips/b.mp4; references of clips without captions: c.mp4"):
        evaluate_captions(said, write(tmp_path / "refs.jsonl", *refs), ("rouge",))
    refs[1]["id"] = "sets/clips/a.mp4"
    with pytest.raises(
        ValueError, match=r"refs\.jsonl: ids .* clip 'clips/a\.mp4' may match 'a\.mp4' or 'sets/clips"
    ):
        evaluate_captions(said, write(tmp_path / "refs.jsonl", *refs), ("rouge",))
