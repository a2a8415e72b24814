"""The example that users start from."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from llava_soundclip import loading
from llava_soundclip.demo import SOUNDS
from llava_soundclip.demo.kinds import make_clip, make_scene
from tests.media.making import chirp, to_format, write

CAPTION_CLIP = Path(__file__).parents[1] / "examples" / "caption_clip.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the example; how it ends."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(CAPTION_CLIP), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(CAPTION_CLIP), run_name="__main__")
        return end.value.code

    def no_model(**options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_demo", no_model)
    monkeypatch.chdir(tmp_path)
    return call


def test_a_clip_that_cannot_be_captioned_is_told_before_a_model_is_loaded(run, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("no video")
    make_scene("bell", 60, np.random.default_rng(0)).save("bell.png")
    write(Path("bell.wav"), sound=to_format(chirp(1, 16_000), "s16"))
    make_clip("bell.mp4", picture="bell", sound="bell", seconds=1)
    assert run("nosuch.mp4") == "nosuch.mp4: No such file or directory"
    assert run("folder") == "folder: Is a directory"
    assert run("notes.txt") == "notes.txt: it isn't a media file, or it is truncated or damaged"
    assert run("bell.png") == "bell.png: it has no sound"
    assert run("bell.wav") == "bell.wav: it has no picture; give one with --picture"
    assert run("bell.wav", "--picture", "nosuch.png") == "nosuch.png: No such file or directory"
    for good in (["bell.mp4"], ["bell.wav", "--picture", "bell.png"]):
        with pytest.raises(AssertionError, match="a model was loaded"):
            run(*good)


def test_a_missing_package_is_one_line(run, tmp_path, monkeypatch):
    def missing(**options):
        raise FileNotFoundError("the miniature needs ...")

    monkeypatch.setattr(loading, "load_demo", missing)
    assert run() == "the miniature needs ..."


def test_help_says_what_the_miniature_knows(run, capsys):
    assert run("--help") == 0
    assert f"It knows {len(SOUNDS)} sounds" in capsys.readouterr().out
