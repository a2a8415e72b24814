"""The commands `embed`, `encoders` and `info`, and the program itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llava_soundclip import __version__, cli
from tests.encoders.test_registry import CHECKPOINTS
from tests.media.making import chirp, to_format, write

runner = CliRunner()


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


def test_an_encoders_options_reach_it(sounds, tmp_path):
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
        (["--encoder", "imagebind", "--dtype", "int8"], "--dtype 'int8' is unknown"),
        (["--out", "clips"], "clips is a folder"),
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


def test_the_version():
    result = runner.invoke(cli.app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"llava-soundclip {__version__}\n"


@pytest.mark.parametrize("command", ["caption", "embed", "features"])
def test_a_folder_without_clips_is_told_of(tmp_path, command):
    (tmp_path / "recording.weba").touch()
    out = [] if command == "caption" else ["--out", str(tmp_path / "out")]
    result = runner.invoke(cli.app, [command, str(tmp_path), *out])
    assert result.exit_code == 1 and "There are no clips in" in result.stderr
