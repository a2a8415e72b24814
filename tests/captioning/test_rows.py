"""The file of captions: what an interrupted run leaves, and what isn't touched."""

import json
import subprocess
import sys
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


MADE = {
    "encoder": "clap",
    "alignment": "raw",
    "k": 15,
    "tokens": "zero",
    "model": "demo",
    "options": "12345678",
}


def made(clip, **changes):
    return {"clip": clip, "caption": "a dog", **MADE, **changes}


def write_rows(path, *given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def test_two_runs_make_one_row_for_each_clip(tmp_path):
    path = tmp_path / "captions.jsonl"
    first, second = CaptionFile(path), CaptionFile(path)
    first.add([{"clip": "a", "caption": "first"}])
    second.add([{"clip": "a", "caption": "second"}, {"clip": "b", "caption": "second"}])
    assert "b" not in first
    first.refresh()
    assert "b" in first
    CaptionFile(path, "raw").add([{"clip": "a", "setting": "raw", "caption": "another setting"}])
    first.add([{"clip": "b"}, {"clip": "c"}])
    assert [(row["clip"], row.get("caption")) for row in rows(path)] == [
        *(("a", "first"), ("b", "second"), ("a", "another setting"), ("c", None))
    ]


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "captions.jsonl", made("a"))
    code = f"""
import resource, signal
from llava_soundclip.captioning import CaptionFile
from pathlib import Path
file = CaptionFile(Path({str(path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 40},) * 2)
try: file.add([{{"clip": "b", "caption": "x" * 30}}, {{"clip": "c"}}])
except OSError as error: print(error.filename, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} File too large\n"
    assert [row["clip"] for row in rows(path)] == ["a"]


@pytest.mark.parametrize("how", ["removed", "replaced", "emptied"])
def test_a_file_that_is_not_the_same_any_more_is_an_error(tmp_path, how):
    path = write_rows(tmp_path / "captions.jsonl", made("a"))
    captions = CaptionFile(path)
    if how == "removed":
        path.unlink()
    elif how == "replaced":
        write_rows(tmp_path / "new", made("a"), made("b")).replace(path)
    else:
        path.write_text("")
    with pytest.raises(OSError, match="it was removed during|it was replaced during"):
        captions.add([made("c")])


def test_rows_made_with_other_options_are_not_taken_for_these(tmp_path):
    path = write_rows(tmp_path / "captions.jsonl", made("a", setting="mine"))
    assert "a" in CaptionFile(path, "mine", MADE)
    assert "a" in CaptionFile(path, "mine")
    for change, says in (
        ({"k": 150}, "k 15, not 150"),
        ({"encoder": "imagebind"}, "encoder clap, not imagebind"),
        ({"alignment": 0.5}, "alignment raw, not 0.5"),
        ({"tokens": "drop"}, "tokens zero, not drop"),
        ({"model": "other"}, "model demo, not other"),
        ({"control": "noise"}, "control None, not noise"),
        ({"options": "abcdefgh"}, "another prompt, length, frame, norm, picture or other weights"),
    ):
        with pytest.raises(
            ValueError, match=f"holds captions of setting 'mine' made with {says}: give another file"
        ):
            CaptionFile(path, "mine", {**MADE, **change})
    assert "a" not in CaptionFile(path, "other", MADE)


def test_settings_without_a_name_are_told_apart_by_their_options(tmp_path):
    path = write_rows(tmp_path / "captions.jsonl", made("a"), {"clip": "b", "caption": "of another program"})
    assert "a" not in CaptionFile(path, None, {**MADE, "k": 150})
    assert "a" not in CaptionFile(path, None, {**MADE, "control": "noise"})
    captions = CaptionFile(path, None, MADE)
    assert "a" in captions and "b" in captions
    with pytest.raises(ValueError, match="captions of these clips made with another prompt"):
        CaptionFile(path, None, {**MADE, "options": "abcdefgh"})
    older = {name: value for name, value in made("c").items() if name != "options"}
    assert "c" in CaptionFile(write_rows(path, older), None, MADE)


@pytest.mark.parametrize(
    "line", ["[" * 3000, '{"clip": []}', '{"clip": "a", "clip": "b"}', "null", '"a"', "1" * 5000]
)
def test_lines_that_are_no_rows_are_named(tmp_path, line):
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"clip": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2 of .* isn't a row of captions"):
        CaptionFile(path)
