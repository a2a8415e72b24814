"""The file of captions: what an interrupted run leaves, and what isn't touched."""

import json
from pathlib import Path

import pytest

from llava_soundclip.captioning import CaptionFile


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_half_written_row_is_taken_away(tmp_path, cut):
    first, second = '{"clip": "a", "caption": "ü"}\n', '{"clip": "b"}\n'
    path = tmp_path / "captions.jsonl"
    path.write_bytes((first + second).encode()[:-cut])
    captions = CaptionFile(path)
    assert ("a" in captions, "b" in captions) == (True, cut == 1)
    captions.add([{"clip": "c", "caption": "…"}])
    assert [row["clip"] for row in rows(path)] == (["a", "b", "c"] if cut == 1 else ["a", "c"])


def test_a_file_cut_inside_a_letter(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes('{"clip": "ü'.encode()[:-1])
    CaptionFile(path).add([{"clip": "ü"}])
    assert rows(path) == [{"clip": "ü"}]


def test_a_file_of_something_else_is_not_touched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text('{"clip": "a"}\nmy notes\nmore')
    with pytest.raises(ValueError, match="line 2 of .*notes.txt isn't a row of captions"):
        CaptionFile(path)
    assert path.read_text() == '{"clip": "a"}\nmy notes\nmore'


def test_folders_of_the_file_are_made(tmp_path):
    CaptionFile(tmp_path / "a" / "b" / "captions.jsonl").add([{"clip": "a"}])
    assert rows(tmp_path / "a" / "b" / "captions.jsonl") == [{"clip": "a"}]
