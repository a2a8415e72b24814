"""Every command that writes, killed and terminated: nothing is lost, nothing is left behind, and it says so."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_soundclip.features import FeatureFolder
from tests.training.making import write_features

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Runs the command line, and sends itself a signal at the nth call of a function: before it does anything.
CHILD = """
import os, signal, sys
from importlib import import_module
from tests.cli.test_caption import FakeSoundCLIP
from llava_soundclip import cli, loading

# The tests may run under nohup or in the background of a shell, which ignore these for their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

place, nth, name = sys.argv[1:4]
sys.argv[1:4] = []
module, _, attribute = place.partition(":")
owner = import_module(module)
*path, last = attribute.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), []

def counted(*arguments, **options):
    calls.append(1)
    if len(calls) == int(nth):
        os.kill(os.getpid(), getattr(signal, name))
    return original(*arguments, **options)

if int(nth):
    setattr(owner, last, counted)
loading.load_soundclip = lambda model, **options: FakeSoundCLIP()
if __name__ == "__main__":
    cli.main()
"""


def run(folder: Path, place: str, nth: int, name: str, *arguments: object) -> subprocess.CompletedProcess:
    (folder / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "child.py", place, str(nth), name, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    from tests.encoders import fake_whisper

    return fake_whisper.write_openai(tmp_path_factory.mktemp("whisper") / "w.pt", fake_whisper.weights())


def make_clips(folder: Path, count: int = 12) -> None:
    from tests.cli.test_caption import sound

    for n in range(count):
        sound(folder / "clips" / f"{n:02}.wav", n + 1)


def features_of(folder: Path) -> list:
    found = FeatureFolder(folder)
    found.verify()
    return [found.ids, *(tensor.tolist() for tensor in found.rows(torch.arange(len(found))))]


def captions_of(path: Path) -> list:
    return sorted(path.read_text().splitlines())


COMMANDS = {
    "caption": (
        ["caption", "clips", "--out", "out/c.jsonl", "--batch-size", 2, "--workers", 0],
        "out/c.jsonl",
        captions_of,
    ),
    "embed": (
        ["embed", "clips", "--out", "out/v.safetensors", "--batch-size", 2, "--workers", 0],
        "out/v.safetensors",
        lambda path: {name: vector.tolist() for name, vector in load_file(path).items()},
    ),
    "features": (
        ["features", "clips", "--out", "out", "--workers", 0, "--shard-size", 3, "--batch-size", 2],
        "out",
        features_of,
    ),
    "train": (
        ["train", "made", "--out", "out", "--epochs", 2, "--batch-size", 16, "--hidden", 8],
        "out/model.safetensors",
        lambda path: path.read_bytes(),
    ),
    "retrieval": (
        ["eval", "retrieval", "made", "--json", "out/r.json"],
        "out/r.json",
        lambda path: path.read_text(),
    ),
    "captions": (
        ["eval", "captions", "said.jsonl", "--references", "known.jsonl", "--metrics", "bleu", "--json", "out/c.json"],
        "out/c.json",
        lambda path: path.read_text(),
    ),
    "report": (
        ["report", "runs", "--out", "out/r.html", "--json", "out/r.json"],
        "out/r.html",
        lambda path: path.read_text(),
    ),
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path, whisper, tower_folder, request):
    """Two equal folders with the input of a command, and its arguments."""
    name = request.param
    arguments = list(COMMANDS[name][0])
    if name in ("embed", "features"):
        arguments += ["--checkpoint", whisper]
    if name == "features":
        arguments += ["--tower", tower_folder]
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        folder.mkdir()
        if name in ("caption", "embed", "features"):
            make_clips(folder)
        elif name in ("train", "retrieval"):
            write_features(folder / "made", clips=60)
        elif name == "captions":
            said = [{"id": n, "caption": f"a dog {n}"} for n in range(4)]
            known = [{"id": n, "references": ["a dog barks"]} for n in range(4)]
            for file, rows in (("said", said), ("known", known)):
                (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            from tests.evaluation.report.test_report import a_retrieval

            (folder / "runs").mkdir()
            (folder / "runs" / "a.json").write_text(json.dumps(a_retrieval(n=20)))
    return name, tmp_path / "whole", tmp_path / "killed", arguments


@pytest.mark.parametrize("prepared", COMMANDS, indirect=True)
def test_what_was_killed_anywhere_ends_as_if_it_never_was(prepared):
    name, whole, killed, arguments = prepared
    _, output, content = COMMANDS[name]
    done = run(whole, "os:fsync", 0, "SIGKILL", *arguments)
    assert done.returncode == 0, done.stderr
    expected = content(whole / output)
    place = "llava_soundclip.captioning.rows:CaptionFile.add" if name == "caption" else "os:fsync"
    first = 2 if name in ("features", "train") else 1
    for nth in (
        first + 1,
        first + 1,
        first,
    ):  # in the middle, and again; the trial before the work syncs, too
        died = run(killed, place, nth, "SIGKILL", *arguments)
        assert died.returncode in (-signal.SIGKILL, 0), died.stderr
    done = run(killed, place, 0, "SIGKILL", *arguments)
    assert done.returncode == 0, done.stderr
    assert content(killed / output) == expected
    assert parts(killed) == []


STOPPED = {
    "caption": (
        "llava_soundclip.captioning.rows:CaptionFile.add",
        4,
        "the captions so far are in out/c.jsonl",
    ),
    "embed": (
        "llava_soundclip.encoders.base:AudioEncoder.embed",
        4,
        "the vectors so far are in out/v.safetensors",
    ),
    "features": ("llava_soundclip.features.store:FeatureWriter.add", 8, "the features so far are in out"),
    "train": ("llava_soundclip.training.fit:_TrainingRun.after_step", 2, "the state is in out"),
}


@pytest.mark.parametrize(
    ("prepared", "name"),
    [*((command, "SIGTERM") for command in STOPPED), ("embed", "SIGHUP"), ("train", "SIGINT")],
    indirect=["prepared"],
)
def test_a_signal_keeps_what_is_done_and_says_so(prepared, name):
    command, whole, _, arguments = prepared
    place, nth, says = STOPPED[command]
    stopped = run(whole, place, nth, name, *arguments)
    assert stopped.returncode == 128 + getattr(signal, name), stopped.stderr
    assert f"Stopped; {says}, and the same command resumes." in stopped.stderr
    assert "Traceback" not in stopped.stderr
    if command == "caption":
        assert len(captions_of(whole / "out/c.jsonl")) >= 6
    elif command == "embed":
        assert len(load_file(whole / "out/v.safetensors")) >= 6
    elif command == "features":
        assert len(FeatureFolder(whole / "out")) >= 7
    else:
        assert torch.load(whole / "out/training_state.pt", weights_only=True)["step"] == 2
    assert parts(whole) == []
    assert run(whole, place, 0, name, *arguments).returncode == 0


@pytest.mark.parametrize("prepared", ["retrieval"], indirect=True)
def test_a_command_that_saves_at_the_end_says_that_nothing_is_there(prepared):
    _, whole, _, arguments = prepared
    stopped = run(whole, "llava_soundclip.evaluation.output:hash_of", 0, "SIGTERM", *arguments)
    assert stopped.returncode == 0
    (whole / "out/r.json").write_text("the old figures")
    place = "llava_soundclip.evaluation.retrieval:evaluate_retrieval"
    stopped = run(whole, place, 1, "SIGTERM", *arguments)
    assert stopped.returncode == 143 and "Stopped; nothing was written." in stopped.stderr
    assert (whole / "out/r.json").read_text() == "the old figures"


@pytest.mark.parametrize("prepared", ["caption", "embed", "features", "train"], indirect=True)
def test_an_output_that_is_removed_meanwhile_is_an_error(prepared, tmp_path):
    command, whole, _, arguments = prepared
    place, nth, _ = STOPPED[command]
    (whole / "gone.py").write_text(
        CHILD.replace("os.kill(os.getpid(), getattr(signal, name))", "import shutil; shutil.rmtree('out')")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "gone.py", place, str(nth), "SIGTERM", *map(str, arguments)],
        cwd=whole, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert "Error: " in ended.stderr and "out" in ended.stderr
