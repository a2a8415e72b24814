"""The command `caption`, on a fake handle; and once on the miniature, if its packages are installed."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava_soundclip import cli, loading
from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, WHISPER, is_packaged
from tests.media.making import break_codec, chirp, film, picture_frames, to_format, two_tracks, write

runner = CliRunner()
RATE = 16_000


class FakeSoundCLIP:
    """Captions a sound with its loudness, by which tests know it; fails on what is too quiet."""

    encoder = SimpleNamespace(name="whisperclip", decoding_rate=RATE)
    alignment = "projected"
    k = 18
    tokens = "zero"
    control = None

    def __init__(self):
        self.calls = []

    def caption(self, source, prompt=None, picture=None, **options):
        loudness = [round(float(np.abs(sound).max()) * 100) for sound in source]
        self.calls.append(
            {"heard": loudness, "prompt": prompt, "picture": picture, "control": self.control, **options}
        )
        if ODD in loudness:
            raise RuntimeError("out of memory")
        return [f"I hear {number}." for number in loudness]


ODD = 99  # loudness of a sound that the fake fails on


def sound(path, loudness):
    """A short sound, known by its loudness in hundredths, with a picture of the same name beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.full(160, loudness * 327.68, "<i2").tobytes())
    Image.new("RGB", (8, 8), (loudness, 0, 0)).save(path.with_suffix(".png"))


@pytest.fixture
def fake(monkeypatch):
    handle = FakeSoundCLIP()
    handle.options = []

    def load(model, **options):
        handle.options.append({"model": model, **options})
        return handle

    monkeypatch.setattr(loading, "load_soundclip", load)
    return handle


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with three clips in it and below; the current one is above it."""
    monkeypatch.chdir(tmp_path)
    for loudness, name in ((10, "clips/a.WAV"), (20, "clips/b.wav"), (30, "clips/deep/er/c.wav")):
        sound(tmp_path / name, loudness)
    (tmp_path / "clips" / "notes.txt").touch()
    (tmp_path / "clips" / "folder.mp4").mkdir()
    return tmp_path


CLIPS = {"clips/a.WAV": 10, "clips/b.wav": 20, "clips/deep/er/c.wav": 30}


def run(*arguments):
    return runner.invoke(cli.app, ["caption", *map(str, arguments)])


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def heard(fake):
    return [call["heard"] for call in fake.calls]


def test_rows_say_how_they_came_about(folder, fake):
    result = run("clips", "--out", "captions.jsonl", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert rows("captions.jsonl") == [
        {
            "clip": clip,
            "caption": f"I hear {loudness}.",
            "image": str(Path(clip).with_suffix(".png")),
            "encoder": "whisperclip",
            "alignment": "projected",
            "k": 18,
            "tokens": "zero",
            "model": "demo",
            "options": rows("captions.jsonl")[0]["options"],
        }
        for clip, loudness in CLIPS.items()
    ]
    assert heard(fake) == [[10, 20], [30]]
    assert [picture.getpixel((0, 0))[0] for picture in fake.calls[0]["picture"]] == [10, 20]
    assert fake.calls[0]["sampling_rate"] == [RATE, RATE]


def test_without_a_file_captions_are_printed(folder, fake):
    result = run("clips/b.wav", "clips/a.WAV")
    assert result.exit_code == 0
    assert result.stdout == "clips/b.wav\tI hear 20.\nclips/a.WAV\tI hear 10.\n"


def test_only_what_is_given_reaches_patch(folder, fake):
    run("clips/b.wav")
    options = {
        "--model": "some/llava",
        "--encoder": "whisper",
        "--checkpoint": "tiny",
        "--alignment": 0.25,
        "--projector": "p",
        "--k": 7,
        "--tokens": "drop",
        "--norm": "match",
        "--prompt": "What?",
        "--max-new-tokens": 9,
        "--device": "cuda:1",
        "--dtype": "float16",
    }
    run("clips/b.wav", *(part for pair in options.items() for part in pair))
    assert fake.options == [
        {"model": "demo", "device": None, "dtype": "auto"},
        {
            "model": "some/llava",
            "device": "cuda:1",
            "dtype": "float16",
            "encoder": "whisper",
            "checkpoint": "tiny",
            "alignment": 0.25,
            "projector": "p",
            "k": 7,
            "tokens": "drop",
            "norm": "match",
        },
    ]
    assert fake.prompt == "What?" and fake.calls[1]["max_new_tokens"] == 9
    assert run("clips/a.WAV", "--encoder-option", "window=clip").exit_code == 0
    assert fake.options[-1]["window"] == "clip"


def test_the_frame_of_a_video(tmp_path, fake):
    film(tmp_path / "film.mov", seconds=2.0)
    for frame in ("first", "1.5", "middle"):
        assert run(tmp_path / "film.mov", "--frame", frame).exit_code == 0
    first, late, middle = (np.asarray(call["picture"][0]).mean() for call in fake.calls)
    assert first < middle < late  # each frame is brighter than the one before


def test_bad_clips_are_listed_at_the_end(folder, fake):
    (folder / "clips" / "bad.mp4").write_text("no video")
    sound(folder / "clips" / "odd.wav", ODD)
    result = run("clips", "gone bad.mp4", "--out", "captions.jsonl")
    assert result.exit_code == 1
    assert len(rows("captions.jsonl")) == 3
    assert result.stdout == ""
    saved, *lines = result.stderr.split("\n")
    assert saved == "3 captions in captions.jsonl"
    assert lines[1] == "3 of 6 clips could not be captioned:" and lines[5] == ""
    assert lines[2].startswith("  clips/bad.mp4: it isn't a media file")
    assert lines[3] == "  clips/odd.wav: out of memory"
    assert lines[4].startswith("  gone bad.mp4: No such file")


def test_maps_are_named_in_the_rows(folder, fake, monkeypatch):
    from llava_soundclip import maps

    drawn = []

    def save_map(trace, path, caption):
        drawn.append((trace, caption))
        path.write_bytes(b"png")
        return path

    monkeypatch.setattr(maps, "save_map", save_map)
    fake.trace = lambda wave, picture, sampling_rate: (
        round(float(wave.max()) * 100),
        picture.getpixel((0, 0))[0],
        sampling_rate,
    )
    (folder / "runs").mkdir()
    assert run("clips", "--out", "runs/captions.jsonl", "--maps", "runs/maps").exit_code == 0
    found = rows("runs/captions.jsonl")
    assert drawn == [((number, number, RATE), f"I hear {number}.") for number in CLIPS.values()]
    assert [row["image"] for row in found] == ["../clips/a.png", "../clips/b.png", "../clips/deep/er/c.png"]
    assert len({row["map"] for row in found}) == 3
    for row in found:
        assert row["map"].startswith("maps/") and (folder / "runs" / row["map"]).read_bytes() == b"png"


def test_one_file_holds_several_settings(folder, fake):
    for setting in ("raw", "projected", "raw"):
        assert run("clips", "--out", "captions.jsonl", "--setting", setting).exit_code == 0
    assert [row["setting"] for row in rows("captions.jsonl")] == ["raw"] * 3 + ["projected"] * 3
    assert run("clips", "--out", "captions.jsonl").exit_code == 0  # one without a name is one more
    assert len(rows("captions.jsonl")) == 9


def test_controls(folder, fake):
    assert run("clips", "--out", "captions.jsonl", "--control", "noise", "--batch-size", 8).exit_code == 0
    assert fake.calls[0]["control"] == "noise" and rows("captions.jsonl")[0]["control"] == "noise"
    assert run("clips", "--out", "others.jsonl", "--control", "another", "--batch-size", 2).exit_code == 0
    assert heard(fake)[1:] == [[20, 30], [10]] and fake.calls[1]["control"] is None
    pictures = [picture.getpixel((0, 0))[0] for call in fake.calls[1:] for picture in call["picture"]]
    assert pictures == [10, 20, 30]
    assert [row["heard"] for row in rows("others.jsonl")] == [*CLIPS][1:] + [*CLIPS][:1]
    for arguments in (["clips", "--control", "silence"], ["clips/b.wav", "--control", "another"]):
        refused = run(*arguments)
        assert refused.exit_code == 2 and "another" in refused.stderr


def test_a_clip_that_cannot_be_decoded_is_heard_in_place_of_no_other(folder, fake):
    (folder / "clips" / "b.wav").write_text("no sound")
    assert run("clips", "--out", "captions.jsonl", "--control", "another").exit_code == 1
    assert [(row["clip"], row["heard"]) for row in rows("captions.jsonl")] == [
        ("clips/a.WAV", "clips/deep/er/c.wav"),
        ("clips/deep/er/c.wav", "clips/a.WAV"),
    ]


def test_a_second_run_does_what_is_missing(folder, fake):
    (folder / "clips" / "bad.mp4").touch()
    assert run("clips", "--out", "captions.jsonl").exit_code == 1
    before = rows("captions.jsonl")
    (folder / "clips" / "bad.mp4").unlink()
    sound(folder / "clips" / "new.wav", 40)
    fake.calls.clear()
    result = run(folder / "clips", "--out", "captions.jsonl")  # the same clips by another name
    assert result.exit_code == 0 and "3 of 4 clips are in captions.jsonl already" in result.stderr
    assert heard(fake) == [[40]]
    assert rows("captions.jsonl")[:3] == before and len(rows("captions.jsonl")) == 4
    fake.options.clear()
    assert run("clips", "--out", "captions.jsonl").exit_code == 0
    assert fake.options == []  # nothing to do: no model is loaded


def test_rows_made_with_other_options_are_not_already_there(folder, fake):
    first = ["clips", "--out", "captions.jsonl", "--setting", "mine"]
    assert run(*first).exit_code == 0
    fake.options.clear()
    for option, says in (
        (["--k", 3], "k 18, not 3"),
        (["--alignment", "raw"], "alignment projected, not raw"),
        (["--tokens", "drop"], "tokens zero, not drop"),
        (["--encoder", "clap"], "encoder whisperclip, not clap"),
        (["--model", "other/llava"], "model demo, not other/llava"),
        (["--control", "noise"], "control None, not noise"),
        *(
            (option, "made with another prompt")
            for option in (
                ["--prompt", "What is it?"],
                ["--max-new-tokens", 5],
                ["--frame", "first"],
                ["--norm", "match"],
                ["--encoder-option", "window=clip"],
                ["--checkpoint", "small"],
                ["--picture", "clips/a.png"],
            )
        ),
    ):
        result = run(*first, *option)
        assert result.exit_code == 2 and says in result.stderr, result.stderr
        assert "give another file, or another setting" in result.stderr
    assert fake.options == []  # all of this is told before a model is loaded
    assert len(rows("captions.jsonl")) == 3
    assert run(*first, "--norm", "keep", "--k", 18, "--alignment", "projected").exit_code == 0
    assert fake.options == []


def test_without_a_setting_other_options_are_another_setting(folder, fake):
    assert run("clips", "--out", "captions.jsonl").exit_code == 0
    fake.k = 3
    assert run("clips", "--out", "captions.jsonl", "--k", 3).exit_code == 0
    assert [row["k"] for row in rows("captions.jsonl")] == [18] * 3 + [3] * 3
    from llava_soundclip.captioning import read_captions

    assert len({caption.setting for caption in read_captions("captions.jsonl")}) == 2
    result = run("clips", "--out", "captions.jsonl", "--prompt", "What is it?")
    assert result.exit_code == 2 and "made with another prompt" in result.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody may write to")
@pytest.mark.parametrize("option", ["--out", "--maps"])
def test_what_cannot_be_written_is_told_before_the_work(folder, fake, option):
    result = run("clips", option, "/proc/captions/c.jsonl")
    assert (
        result.exit_code == 2
        and f"Error: {option}: /proc/captions/c.jsonl can't be written: " in result.stderr
    )
    assert fake.options == [] and len(result.stderr.splitlines()) == 1


def test_limits_are_options(folder, fake):
    result = run("clips", "--out", "captions.jsonl", "--max-seconds", 0.005, "--workers", 0)
    assert (
        result.exit_code == 1 and "longer than 0.005 s" in result.stderr and "--max-seconds" in result.stderr
    )
    result = run("clips", "--out", "captions.jsonl", "--max-pixels", 63)
    assert result.exit_code == 1 and "8 x 8 pixels" in result.stderr and "--max-pixels" in result.stderr
    assert run("clips", "--out", "captions.jsonl").exit_code == 0


def test_rows_of_a_table(folder, fake):
    table = [{"path": "clips/b.wav", "id": "kept", "end": 0.005}, {"path": "clips/a.WAV"}]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (folder / "runs").mkdir()
    assert run("table.jsonl", "--out", "runs/captions.jsonl").exit_code == 0
    found = rows("runs/captions.jsonl")
    assert [(row["clip"], row["caption"]) for row in found] == [
        ("kept", "I hear 20."),
        ("clips/a.WAV", "I hear 10."),
    ]
    assert found[0]["image"].startswith("frames/kept") and found[1]["image"] == "../clips/a.png"
    assert Image.open(folder / "runs" / found[0]["image"]).getpixel((0, 0)) == (20, 0, 0)


def test_one_picture_for_sounds_that_have_none(tmp_path, fake):
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips/sound.wav", sound=to_format(chirp(0.1, 16_000), "s16"))
    film(tmp_path / "clips/film.mov", seconds=0.5)
    picture = tmp_path / "picture.png"
    write(picture, container="image2", pictures=picture_frames(1), video_codec="png")
    (tmp_path / "clips/text.mp4").write_text("no film")
    result = run(tmp_path / "clips", "--batch-size", 1)
    assert result.exit_code == 1 and "--picture" in result.stderr
    fake.calls.clear()
    result = run(tmp_path / "clips", "--picture", picture, "--batch-size", 1, "--out", tmp_path / "c.jsonl")
    assert result.exit_code == 1 and "text.mp4: it isn't a media file" in result.stderr
    assert [call["picture"][0].size for call in fake.calls] == [(64, 48), (64, 48)]
    assert [row["image"] for row in rows(tmp_path / "c.jsonl")] == ["clips/film.mov", "picture.png"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--frame", "last"], "middle, first, or seconds"),
        (["--picture", "gone.png"], "gone.png: No such file"),
        (["--out", "notes.txt"], "line 1 of notes.txt"),
        (["--k", "-1"], "k"),
        (["--batch-size", "0"], "batch-size"),
        (["--unknown"], "unknown"),
    ],
)
def test_wrong_options_end_before_any_work(folder, fake, arguments, words):
    (folder / "notes.txt").write_text("notes\n")
    result = run("clips", *arguments)
    assert result.exit_code == 2 and words in " ".join(result.stderr.replace("│", " ").split())
    assert fake.calls == []


def test_a_model_that_cannot_be_loaded_is_said_without_a_traceback(folder, monkeypatch):
    def load(model, **options):
        raise TypeError("openai/clip is a CLIPModel; supported are LlavaForConditionalGeneration")

    monkeypatch.setattr(loading, "load_soundclip", load)
    result = run("clips")
    assert result.exit_code == 2
    assert result.stderr == "Error: openai/clip is a CLIPModel; supported are LlavaForConditionalGeneration\n"


_SLOW = """
import sys, time
from llava_soundclip import cli, loading
from tests.cli.test_caption import FakeSoundCLIP

class Slow(FakeSoundCLIP):
    def caption(self, source, **options):
        time.sleep(0.02)
        return super().caption(source, **options)

loading.load_soundclip = lambda model, **options: Slow()
sys.argv = ["llava-soundclip", "caption", "clips", "--out", "captions.jsonl", "--batch-size", "3"]
cli.main()
"""


def test_a_killed_run_goes_on_with_the_same_rows(tmp_path, fake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for i in range(60):
        sound(tmp_path / "clips" / f"{i:02}.wav", i)
    out = tmp_path / "captions.jsonl"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for wanted in (6, 24):
        process = subprocess.Popen([sys.executable, "-c", _SLOW], env=environment)
        deadline = time.monotonic() + 120
        while (out.read_bytes().count(b"\n") if out.exists() else 0) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    count = len(rows(out))
    assert 24 <= count < 60
    with open(out, "ab") as file:
        file.write(b'{"clip": "clips/59.wav", "capt')  # what a kill in the middle of a write leaves
    result = run("clips", "--out", "captions.jsonl", "--batch-size", 3)
    assert result.exit_code == 0
    assert sum(map(len, heard(fake))) == 60 - count
    resumed = out.read_bytes()
    out.unlink()
    run("clips", "--out", "captions.jsonl", "--batch-size", 3)
    assert resumed == out.read_bytes()


def _demo_or_skip():
    if not all(map(is_packaged, (WHISPER, SMOLLM2))):
        pytest.skip(f"needs {PIP_LINE}")


@pytest.mark.slow
def test_the_miniature_captions_a_clip_of_its_own(tmp_path):
    _demo_or_skip()
    from llava_soundclip.demo.kinds import make_clip

    clip = make_clip(tmp_path / "bell.mp4", picture=["bell", "whistle"], sound="bell")
    (tmp_path / "bad.mp4").write_text("no film")
    result = run(tmp_path, "--out", tmp_path / "captions.jsonl", "--max-new-tokens", 24)
    assert result.exit_code == 1 and "bad.mp4: it isn't a media file" in result.stderr
    (row,) = rows(tmp_path / "captions.jsonl")
    assert row["clip"] == str(clip) and row["caption"] and row["encoder"] == "whisperclip"
    assert (row["alignment"], row["tokens"], row["model"]) == ("projected", "zero", "demo")


@pytest.mark.slow
def test_the_example_prints_three_captions_and_a_map(tmp_path):
    _demo_or_skip()
    example = Path(__file__).parents[2] / "examples" / "caption_clip.py"
    done = subprocess.run(
        [sys.executable, example, "--map", tmp_path / "map.png"], capture_output=True, text=True, check=True
    )
    for word in ("without sound:", "with another sound:", "with its sound:", str(tmp_path / "map.png")):
        assert word in done.stdout
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "names, words",
    [
        (["nope.mp4"], "nope.mp4: No such file or directory"),
        (["nope.mp4", "clips/*.mov"], "2 of 2 clips could not be captioned"),
        (["https://example.org/a.mp4"], "it is an address: download the file, and give its path"),
        (["data:audio/wav;base64,UklGRg=="], "it is a data URI"),
        (["bad.csv"], "its start is 'soon', not seconds"),
    ],
)
def test_clips_that_are_known_to_be_bad_are_told_before_the_model_loads(folder, fake, names, words):
    (folder / "bad.csv").write_text("path,start\na.wav,soon\n")
    result = run(*names)
    assert result.exit_code == 1 and words in result.stderr.replace("\n  ", " ")
    assert fake.options == []


def test_a_run_says_what_it_wrote(folder, fake):
    result = run("clips", "--out", "captions.jsonl")
    assert result.exit_code == 0 and "3 captions in captions.jsonl" in result.stderr


def test_the_columns_of_a_table(folder, fake):
    (folder / "t.csv").write_text(
        "# sound, from, to, key\nb, 0, 0.005, one\na, 0, 0.005, two\nc, x, 1, three\n"
    )
    options = [
        "--path-column",
        "{sound}.wav",
        "--start-column",
        "from",
        "--end-column",
        "to",
        "--id-column",
        "key",
    ]
    (folder / "clips" / "a.wav").symlink_to("a.WAV")
    result = run("t.csv", "--root", "clips", *options, "--out", "c.jsonl")
    assert [(row["clip"], row["caption"]) for row in rows("c.jsonl")] == [
        ("one", "I hear 20."),
        ("two", "I hear 10."),
    ]
    assert result.exit_code == 1 and "1 of 3 clips could not be captioned" in result.stderr
    assert "c.wav (row 3 of t.csv): its start is 'x', not seconds" in result.stderr


def test_a_published_table(folder, fake):
    (folder / "vgg.csv").write_text("Zq3d-_9xX1a,30,rain,train\n--aB3dE6gH9,1,people marching,test\n")
    sound(folder / "Zq3d-_9xX1a_000030.wav", 40)
    options = ["--format", "vggsound", "--path-column", "{YTID}_{start_seconds:06d}.wav"]
    result = run("vgg.csv", *options)
    assert result.stdout == "Zq3d-_9xX1a_000030.wav\tI hear 40.\n"
    assert result.exit_code == 1 and "--aB3dE6gH9_000001.wav: No such file" in result.stderr
    result = run("vgg.csv", "--format", "vgg")
    assert result.exit_code == 2 and "audiocaps, vggsound, not 'vgg'" in " ".join(
        result.stderr.replace("│", " ").split()
    )


@pytest.mark.filterwarnings("default::llava_soundclip.media.MediaWarning")
def test_the_track_to_hear(tmp_path, monkeypatch, fake):
    monkeypatch.chdir(tmp_path)
    two_tracks(tmp_path / "a.mov", default=1)
    shapes = []
    monkeypatch.setattr(
        fake, "caption", lambda source, **_: shapes.extend(map(np.shape, source)) or ["heard"]
    )
    for track in (0, 1):
        result = run("a.mov", "--track", track)
        assert result.exit_code == 0, result.output
    assert [channels for channels, _ in shapes] == [1, 2]
    result = run("a.mov", "--track", 7)
    assert (
        result.exit_code == 1 and "it has no sound track 7: its tracks are 0 (aac), 1 (aac)" in result.stderr
    )
    break_codec(tmp_path / "a.mov", 1)
    result = run("a.mov")
    assert result.exit_code == 0
    assert "Note: a.mov: sound track 1 can't be decoded; track 0 (aac) is used (--track chooses another)" in (
        result.stderr
    )


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_unicode_is_written_escaped_and_found_again(folder, fake):
    name = os.fsdecode(b"caf\xe9.mkv")
    try:
        film(folder / "clips" / "film.mkv", seconds=0.3).rename(folder / "clips" / name)
    except OSError:
        pytest.skip("the file system wants Unicode")
    result = run("clips", "--out", "captions.jsonl", "--batch-size", 1)
    assert result.exit_code == 0, result.output
    row = next(row for row in rows("captions.jsonl") if "caf" in row["clip"])
    assert row["clip"] == r"clips/caf\xe9.mkv"
    with Image.open(folder / row["image"]) as copy:  # since the file's own name can't be written
        assert copy.size == (64, 48)
    fake.calls.clear()
    result = run("clips", "--out", "captions.jsonl")
    assert result.exit_code == 0 and "4 of 4 clips are in captions.jsonl already" in result.stderr
    assert fake.calls == []


@pytest.mark.skipif(os.name == "nt", reason="such names are refused there")
def test_names_cannot_speak_to_the_terminal(folder, fake, monkeypatch):
    forged = "a\x1b]0;owned\x07\nError: forged\r.wav"
    sound(folder / "clips" / forged, 40)
    (folder / "clips" / f"bad {forged}").write_text("no sound")
    monkeypatch.setattr(fake, "caption", lambda source, **_: ["\x1b[31mred\u202e [bold]"] * len(source))
    result = run("clips")
    assert result.exit_code == 1
    assert "\x1b" not in result.output and "\r" not in result.output and "\nError" not in result.output
    assert r"clips/a\x1b]0;owned\x07\nError: forged\r.wav" in result.stdout
    assert r"bad a\x1b]0;owned\x07\nError: forged\r.wav: it isn't a media file" in result.stderr
    assert len(result.stdout.splitlines()) == 4
    result = run("clips", "--out", "c.jsonl")  # a caption may look like a markup of the progress bar
    assert result.exit_code == 1 and "\x1b]0" not in result.output
    assert any(row["clip"] == f"clips/{forged}" for row in rows("c.jsonl"))
    result = run(f"clips/gone {forged}")
    assert result.exit_code == 1 and r"gone a\x1b]0;owned\x07\nError" in result.stderr
    result = run("clips", "--picture", f"gone {forged}")
    assert result.exit_code == 2 and "\x1b]0" not in result.output
