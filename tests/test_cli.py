"""The command line, on a fake handle; and once on the miniature, where its packages are."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from llava_soundclip import __version__, cli
from llava_soundclip.clips import CaptionFile, find_clips
from llava_soundclip.media import MediaError
from llava_soundclip.running import work_through
from tests.encoders.test_registry import CHECKPOINTS
from tests.media.making import chirp, film, picture_frames, to_format, write

runner = CliRunner()


class FakeSoundCLIP:
    """Captions a clip with its own name; fails on those with "bad" in theirs."""

    encoder = SimpleNamespace(name="whisperclip")
    alignment = "projected"
    k = 18
    tokens = "zero"

    def __init__(self):
        self.calls = []

    def caption(self, source, prompt=None, picture=None, frame="middle", **generate_kwargs):
        self.calls.append(
            {"source": source, "prompt": prompt, "picture": picture, "frame": frame, **generate_kwargs}
        )
        for clip in source:
            if "bad" in clip:
                raise MediaError(f"{clip}: it has no sound")
            if "odd" in clip:
                raise RuntimeError("out of memory")
        return [f"I hear {Path(clip).stem}." for clip in source]


@pytest.fixture
def fake(monkeypatch):
    handle = FakeSoundCLIP()
    handle.options = []

    def load(model, **options):
        handle.options.append({"model": model, **options})
        return handle

    monkeypatch.setattr(cli, "load_soundclip", load)
    return handle


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with clips in it, and in a folder below; the current one is above it."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/b.mp4", "clips/a.MOV", "clips/notes.txt", "clips/deep/er/c.wav", "clips/deep/d.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "clips" / "folder.mp4").mkdir()
    return tmp_path


def run(*arguments):
    return runner.invoke(cli.app, ["caption", *map(str, arguments)])


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# Finding clips


def test_files_folders_and_patterns_each_once(folder):
    assert find_clips(["clips"]) == ["clips/a.MOV", "clips/b.mp4", "clips/deep/er/c.wav"]
    assert find_clips(["clips/*.mp4", "clips", "./clips/b.mp4"]) == find_clips(["clips/b.mp4", "clips"])
    assert find_clips(["clips/**/*.wav"]) == ["clips/deep/er/c.wav"]
    assert find_clips(["clips/notes.txt"]) == ["clips/notes.txt"]  # named by itself: it is meant
    assert find_clips(["gone.mp4", "none/*.mp4"]) == ["gone.mp4", "none/*.mp4"]
    assert find_clips([]) == []


def test_a_name_that_looks_like_a_pattern(folder):
    (folder / "clips" / "take[1].mp4").touch()
    assert find_clips(["clips/take[1].mp4"]) == ["clips/take[1].mp4"]


# Batches


def test_a_batch_that_fails_is_tried_one_by_one():
    handle = FakeSoundCLIP()
    clips = ["a", "bad b", "c", "d", "odd e"]
    result = list(work_through(clips, handle.caption, 2))
    assert [list(captions) for captions, _ in result] == [["a"], ["c", "d"], []]
    assert [failed for _, failed in result] == [
        {"bad b": "bad b: it has no sound"},
        {},
        {"odd e": "out of memory"},
    ]
    assert [call["source"] for call in handle.calls] == [
        ["a", "bad b"],
        ["a"],
        ["bad b"],
        ["c", "d"],
        ["odd e"],
    ]


def test_an_error_without_words_has_its_name():
    def ask(batch):
        raise KeyError

    assert list(work_through(["a"], ask, 1)) == [({}, {"a": "KeyError"})]


def test_too_few_captions_are_an_error_not_a_shift():
    assert list(work_through(["a", "b"], lambda batch: ["one"] if len(batch) > 1 else ["right"], 2)) == [
        ({"a": "right", "b": "right"}, {})
    ]


# The file of captions


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
    with pytest.raises(ValueError, match="line 2 of .*notes.txt is no row of captions"):
        CaptionFile(path)
    assert path.read_text() == '{"clip": "a"}\nmy notes\nmore'


def test_folders_of_the_file_are_made(tmp_path):
    CaptionFile(tmp_path / "a" / "b" / "captions.jsonl").add([{"clip": "a"}])
    assert rows(tmp_path / "a" / "b" / "captions.jsonl") == [{"clip": "a"}]


# The command


def test_rows_say_how_they_came_about(folder, fake):
    result = run("clips", "--out", "captions.jsonl", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert rows("captions.jsonl") == [
        {
            "clip": clip,
            "caption": f"I hear {name}.",
            "image": clip,
            "encoder": "whisperclip",
            "alignment": "projected",
            "k": 18,
            "tokens": "zero",
            "model": "demo",
        }
        for clip, name in [("clips/a.MOV", "a"), ("clips/b.mp4", "b"), ("clips/deep/er/c.wav", "c")]
    ]
    assert [call["source"] for call in fake.calls] == [
        ["clips/a.MOV", "clips/b.mp4"],
        ["clips/deep/er/c.wav"],
    ]


def test_without_a_file_captions_are_printed(folder, fake):
    result = run("clips/b.mp4", "clips/a.MOV")
    assert result.exit_code == 0
    assert result.stdout == "clips/b.mp4\tI hear b.\nclips/a.MOV\tI hear a.\n"


def test_only_what_is_given_reaches_patch(folder, fake):
    run("clips/b.mp4")
    run(
        *("clips/b.mp4", "--model", "some/llava", "--encoder", "whisper", "--checkpoint", "tiny"),
        *("--alignment", "0.25", "--projector", "p", "--k", 7, "--tokens", "drop", "--norm", "match"),
        *(
            "--prompt",
            "What?",
            "--frame",
            "1.5",
            "--max-new-tokens",
            9,
            "--device",
            "cuda:1",
            "--dtype",
            "float16",
        ),
    )
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
    assert fake.calls[1] == {
        "source": ["clips/b.mp4"],
        "prompt": "What?",
        "picture": [None],
        "frame": 1.5,
        "max_new_tokens": 9,
    }


def test_bad_clips_are_listed_at_the_end(folder, fake):
    for name in ("bad.mp4", "odd.mp4"):
        (folder / "clips" / name).touch()
    result = run("clips", "gone bad.mp4", "--out", "captions.jsonl")
    assert result.exit_code == 1
    assert len(rows("captions.jsonl")) == 3
    assert result.stdout == ""
    assert result.stderr.split("\n")[1:] == [
        "3 of 6 clips could not be captioned:",
        "  clips/bad.mp4: it has no sound",
        "  clips/odd.mp4: out of memory",
        "  gone bad.mp4: it has no sound",
        "",
    ]


def test_maps_are_named_in_the_rows(folder, fake, monkeypatch):
    from llava_soundclip import maps

    drawn = []

    def save_map(trace, path, caption):
        drawn.append((trace, caption))
        path.write_bytes(b"png")
        return path

    monkeypatch.setattr(maps, "save_map", save_map)
    fake.trace = lambda sound, picture, when: (sound, picture, when)
    (folder / "runs").mkdir()
    assert (
        run("clips", "--out", "runs/captions.jsonl", "--maps", "runs/maps", "--frame", "first").exit_code == 0
    )
    found = rows("runs/captions.jsonl")
    assert drawn[0] == (("clips/a.MOV", None, "first"), "I hear a.")
    assert [row["image"] for row in found] == ["../clips/a.MOV", "../clips/b.mp4", "../clips/deep/er/c.wav"]
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
    assert fake.control == "noise" and rows("captions.jsonl")[0]["control"] == "noise"
    assert run("clips", "--control", "another", "--batch-size", 2).exit_code == 0
    assert fake.control is None
    own = ["clips/a.MOV", "clips/b.mp4", "clips/deep/er/c.wav"]
    assert [call["source"] for call in fake.calls[1:]] == [[own[1], own[2]], [own[0]]]
    assert [call["picture"] for call in fake.calls[1:]] == [own[:2], own[2:]]
    for arguments in (["clips", "--control", "silence"], ["clips/b.mp4", "--control", "another"]):
        refused = run(*arguments)
        assert refused.exit_code == 2 and "another" in refused.stderr


def test_a_second_run_does_what_is_missing(folder, fake):
    (folder / "clips" / "bad.mp4").touch()
    assert run("clips", "--out", "captions.jsonl").exit_code == 1
    before = rows("captions.jsonl")
    (folder / "clips" / "bad.mp4").unlink()
    (folder / "clips" / "new.mp4").touch()
    fake.calls.clear()
    result = run(folder / "clips", "--out", "captions.jsonl")  # the same clips by another name
    assert result.exit_code == 0 and "3 of 4 clips are in captions.jsonl already" in result.stderr
    assert [call["source"] for call in fake.calls] == [[str(folder / "clips" / "new.mp4")]]
    assert rows("captions.jsonl")[:3] == before and len(rows("captions.jsonl")) == 4
    fake.options.clear()
    assert run("clips", "--out", "captions.jsonl").exit_code == 0
    assert fake.options == []  # nothing to do: no model is loaded


def test_one_picture_for_sounds_that_have_none(tmp_path, fake):
    write(tmp_path / "sound.wav", sound=to_format(chirp(0.1, 16_000), "s16"))
    film(tmp_path / "film.mov", seconds=0.5)
    write(tmp_path / "picture.png", container="image2", pictures=picture_frames(1), video_codec="png")
    (tmp_path / "text.mp4").write_text("no film")
    result = run(tmp_path, "--picture", tmp_path / "picture.png")
    assert result.exit_code == 1 and "text.mp4: it isn't a media file" in result.stderr
    pictures = {
        clip: picture
        for call in fake.calls
        for clip, picture in zip(call["source"], call["picture"], strict=True)
    }
    assert pictures[str(tmp_path / "film.mov")] is None
    assert pictures[str(tmp_path / "sound.wav")].size == (64, 48)


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

    monkeypatch.setattr(cli, "load_soundclip", load)
    result = run("clips")
    assert result.exit_code == 2
    assert result.stderr == "Error: openai/clip is a CLIPModel; supported are LlavaForConditionalGeneration\n"


_SLOW = """
import sys, time
from llava_soundclip import cli
from tests.test_cli import FakeSoundCLIP

class Slow(FakeSoundCLIP):
    def caption(self, source, **options):
        time.sleep(0.02)
        return super().caption(source, **options)

cli.load_soundclip = lambda model, **options: Slow()
sys.argv = ["llava-soundclip", "caption", "clips", "--out", "captions.jsonl", "--batch-size", "3"]
cli.main()
"""


def test_a_killed_run_goes_on_with_the_same_rows(tmp_path, fake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for i in range(60):
        (tmp_path / "clips" / f"{i:02}.mp4").touch()
    out = tmp_path / "captions.jsonl"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
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
        file.write(b'{"clip": "clips/59.mp4", "capt')  # what a kill in the middle of a write leaves
    result = run("clips", "--out", "captions.jsonl", "--batch-size", 3)
    assert result.exit_code == 0
    assert sum(len(call["source"]) for call in fake.calls) == 60 - count
    resumed = out.read_bytes()
    out.unlink()
    run("clips", "--out", "captions.jsonl", "--batch-size", 3)
    assert resumed == out.read_bytes()


# The other commands


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Three sounds of other rates and channels, a file that is none, and an encoder's weights."""
    from tests.encoders.fake_imagebind import write_pth

    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for name, rate, channels in (("a", 16_000, 1), ("b", 44_100, 2), ("c", 48_000, 1)):
        samples = to_format(chirp(1.5, rate, channels), "s16")
        write(tmp_path / f"clips/{name}.wav", sound=samples, rate=rate)
    (tmp_path / "clips" / "notes.wav").write_text("no sound")
    return write_pth(tmp_path / "imagebind_huge.pth")


def test_embed_writes_each_clips_vector(sounds):
    from safetensors import safe_open

    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.media import load_audio_as_it_is

    arguments = ["embed", "clips", "--encoder", "imagebind", "--checkpoint", sounds, "--out", "v.safetensors"]
    result = runner.invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert "1 of 4 clips could not be embedded" in result.stderr and "clips/notes.wav" in result.stderr
    assert "3 vectors of 32 numbers in v.safetensors" in result.stderr
    encoder = load_encoder("imagebind", checkpoint=sounds)
    with safe_open("v.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["clips/a.wav", "clips/b.wav", "clips/c.wav"]
        for name in file.keys():  # noqa: SIM118 (no mapping)
            waveform, rate = load_audio_as_it_is(name)
            expected = encoder.embed([waveform], rate)[0]
            assert (file.get_tensor(name) - expected).abs().max() < 1e-5
        about = json.loads(file.metadata()["llava_soundclip"])
    assert about == {**encoder.signature(), "library_version": __version__}


def test_an_encoders_options_reach_it(sounds, tmp_path, fake):
    checkpoint = CHECKPOINTS["whisperclip"](tmp_path)
    options = [
        "--encoder-option",
        "window=clip",
        "--encoder-option",
        "fusion=last_n",
        "--encoder-option",
        "n=1",
    ]
    arguments = ["embed", "clips/a.wav", "--checkpoint", str(checkpoint), *options, "--out", "v.safetensors"]
    assert runner.invoke(cli.app, arguments).exit_code == 0
    from safetensors import safe_open

    with safe_open("v.safetensors", "pt") as file:
        about = json.loads(file.metadata()["llava_soundclip"])
    assert (about["window"], about["fusion"]) == ("clip", "last_n:1")
    assert run("clips/a.wav", "--encoder-option", "window=clip").exit_code == 0
    assert fake.options[-1]["window"] == "clip"
    for wrong in ("window", "=clip", "a b=3"):
        result = runner.invoke(cli.app, [*arguments, "--encoder-option", wrong])
        assert result.exit_code == 2 and "NAME=VALUE" in result.stderr
    result = runner.invoke(cli.app, [*arguments, "--encoder-option", "window=half"])
    assert result.exit_code == 2 and "window='half' is unknown" in result.stderr


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_embed_knows_every_encoder(sounds, tmp_path, name):
    from safetensors.torch import load_file

    checkpoint = CHECKPOINTS[name](tmp_path)
    arguments = ["embed", "clips/a.wav", "clips/b.wav", "--encoder", name, "--checkpoint", checkpoint]
    result = runner.invoke(cli.app, [*map(str, arguments), "--out", "v.safetensors"])
    assert result.exit_code == 0, result.stderr
    vectors = load_file("v.safetensors")
    assert len(vectors) == 2
    assert all(vector.ndim == 1 and vector.isfinite().all() for vector in vectors.values())
    assert not torch.equal(vectors["clips/a.wav"], vectors["clips/b.wav"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "ears"], "unknown encoder 'ears'; known: "),
        (["--encoder", "imagebind", "--checkpoint", "none.pth"], "no ImageBind checkpoint at none.pth"),
        (["--encoder", "imagebind", "--dtype", "int8"], "dtype='int8' is unknown"),
        (["--out", "no/such/folder/v.safetensors"], "there is no folder no/such/folder"),
    ],
)
def test_embed_says_what_is_wrong(sounds, arguments, message):
    out = [] if "--out" in arguments else ["--out", "v.safetensors"]
    result = runner.invoke(cli.app, ["embed", "clips", *arguments, *out])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("v.safetensors").exists()


def test_encoders_lists_all_of_them():
    from llava_soundclip.encoders import available_encoders, encoder_class

    result = runner.invoke(cli.app, ["encoders"])
    assert result.exit_code == 0
    lines = iter(result.stdout.splitlines())
    for name, first, second in zip(available_encoders(), lines, lines, strict=True):
        cls = encoder_class(name)
        assert first.split()[0] == name
        assert cls.card.dim in first and f"{cls.sampling_rate} Hz" in first and cls.card.window in first
        assert all(part in second for part in (cls.card.source, cls.card.weights, cls.card.code))


def test_info_says_what_a_bug_report_needs():
    import torch
    import transformers

    result = runner.invoke(cli.app, ["info"])
    assert result.exit_code == 0
    for word in (
        __version__,
        torch.__version__.partition("+")[0],
        transformers.__version__,
        "LlavaForConditionalGeneration",
    ):
        assert word in result.stdout


def test_the_module_runs_and_says_how_it_is_used():
    done = subprocess.run(
        [sys.executable, "-m", "llava_soundclip"], check=False, capture_output=True, text=True
    )
    assert "caption" in done.stdout + done.stderr and "encoders" in done.stdout + done.stderr


def test_importing_the_command_line_imports_no_torch():
    code = (
        "import sys, llava_soundclip.cli; print({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_folder_of_a_llava_is_loaded(tmp_path, tiny_llava, monkeypatch):
    import transformers

    tiny_llava.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: f"processor of {name}")
    model, processor = cli.load_llava(str(tmp_path), device="cpu", dtype="bfloat16")
    assert type(model) is type(tiny_llava) and str(model.dtype) == "torch.bfloat16"
    assert processor == f"processor of {tmp_path}"


def test_another_family_is_refused_before_its_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    with pytest.raises(TypeError, match="is a CLIPModel; supported are .*LlavaForConditionalGeneration"):
        cli.load_llava(str(tmp_path))


def test_the_original_packages_models_are_not_loaded_from_here(tmp_path):
    config = '{"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        TypeError, match="is a LlavaLlamaForCausalLM; supported are LlavaForConditionalGen"
    ) as error:
        cli.load_llava(str(tmp_path))
    assert "supported are" in str(error.value) and str(error.value).count("LlavaLlama") == 1


def test_the_miniature_goes_where_it_is_told(monkeypatch):
    import torch

    import llava_soundclip.demo

    def load_demo(**options):
        return SimpleNamespace(model=torch.nn.Linear(2, 2), options=options)

    monkeypatch.setattr(llava_soundclip.demo, "load_demo", load_demo)
    soundclip = cli.load_soundclip("demo", device="cpu", dtype="float16", k=3)
    assert soundclip.model.weight.dtype == torch.float16 and soundclip.options == {"k": 3}
    assert cli.load_soundclip("demo", device=None, dtype="auto").model.weight.dtype == torch.float32


def test_another_model_is_patched_with_its_processor(monkeypatch):
    from llava_soundclip import patching

    monkeypatch.setattr(
        cli, "load_llava", lambda name, device, dtype: (f"{name} on {device}", "its processor")
    )
    monkeypatch.setattr(patching, "patch", lambda model, **options: (model, options))
    assert cli.load_soundclip("some/llava", device="cuda", dtype="auto", k=3) == (
        "some/llava on cuda",
        {"processor": "its processor", "k": 3},
    )


def _demo_or_skip():
    from llava_soundclip.demo import assemble

    try:
        for part in (assemble.WHISPER_FILE, assemble.SMOLLM2_FILE):
            assemble.package_file(*part)
    except FileNotFoundError as error:
        pytest.skip(str(error))


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
    example = Path(__file__).parents[1] / "examples" / "caption_clip.py"
    done = subprocess.run(
        [sys.executable, example, "--map", tmp_path / "map.png"], capture_output=True, text=True, check=True
    )
    for word in ("without sound:", "with another sound:", "with its sound:", str(tmp_path / "map.png")):
        assert word in done.stdout
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
