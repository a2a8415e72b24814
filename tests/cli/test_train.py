"""`llava-soundclip train`, to a folder and to a hub."""

import json
import sys

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from llava_soundclip import Projector, cli
from llava_soundclip.training.fit import METRICS, Recipe, train
from tests.hub_server import HubServer
from tests.training.making import write_features

runner = CliRunner()
QUICK = ["--hidden", "24", "--batch-size", "32", "--epochs", "2", "--learning-rate", "3e-3"]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), clips=120)


def run(*arguments):
    return runner.invoke(cli.app, ["train", *map(str, arguments)])


def test_it_trains_as_the_function_does(features, tmp_path):
    result = run(features, "--out", tmp_path / "a", *QUICK, "--loss", "infonce", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    assert "Note: 108 training clips give 8 updates in 2 epochs" in result.stderr
    assert "epoch 2: loss" in result.stderr and "the projector is in" in result.stderr
    recipe = Recipe(hidden=24, batch_size=32, epochs=2, learning_rate=3e-3, loss="infonce", seed=3)
    train(features, tmp_path / "b", recipe)
    for name in ("model.safetensors", METRICS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_small_set_trains_and_says_what_its_figures_are_worth(tmp_path):
    few = write_features(tmp_path / "features", clips=15, per_film=1)
    result = run(few, "--out", tmp_path / "a", "--hidden", "8", "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    told, first, *_ = (
        line for line in result.stderr.splitlines() if "held out" in line or "epoch 1:" in line
    )
    assert told.startswith("Note: only 2 clips are held out for validation")
    assert "mean rank" in first and " of 2, R@1" in first


def test_a_finished_run_says_so(features, tmp_path):
    assert run(features, "--out", tmp_path / "a", *QUICK).exit_code == 0
    again = run(features, "--out", tmp_path / "a", *QUICK)
    assert again.exit_code == 0 and "there is nothing to do" in again.stderr
    other = run(features, "--out", tmp_path / "a", *QUICK, "--seed", "9")
    assert other.exit_code == 2 and "seed was 0 and is 9" in other.stderr


def test_the_card_has_no_folder_of_this_computer(features, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["llava-soundclip", "train", str(features), "--out", str(tmp_path / "a")]
    )
    assert run(features, "--out", tmp_path / "a", *QUICK).exit_code == 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert "llava-soundclip train" in card and str(tmp_path) not in card and str(features) not in card


def test_the_defaults_are_the_recipes(features, tmp_path, monkeypatch):
    from llava_soundclip.training import fit

    given = []
    monkeypatch.setattr(fit, "train", lambda features, out, recipe, **_: given.append(recipe))
    assert run(features, "--out", tmp_path).exit_code == 0
    assert given == [Recipe()]


def test_tensorboard_shows_the_metrics(features, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(features, "--out", tmp_path / "a", *QUICK, "--tensorboard").exit_code == 0
    events = accumulators.EventAccumulator(str(tmp_path / "a" / "runs"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "a" / METRICS).read_text().splitlines()]
    for name in rows[0].keys() - {"epoch"}:
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["epoch"], pytest.approx(row[name], rel=1e-5)) for row in rows]


def test_without_tensorboard_the_line_that_brings_it(features, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = run(features, "--out", tmp_path / "a", *QUICK, "--tensorboard")
    assert result.exit_code == 2 and "llava-soundclip[tensorboard]" in result.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4's own upload
def test_it_is_pushed_with_its_figures(features, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with HubServer() as hub:
        hub.use(monkeypatch)
        result = run(features, "--out", tmp_path / "a", *QUICK, "--push", "somebody/projector")
        assert result.exit_code == 0, result.stderr
        files = hub.files("somebody/projector")
        assert {"model.safetensors", "config.json", "README.md", METRICS, "recipe.json"} <= files.keys()
        assert not any("last" in name or "state" in name for name in files)
        assert b"mean rank" in files["README.md"]
        assert json.loads(files[METRICS].splitlines()[1])["epoch"] == 2
        projector = Projector.from_pretrained("somebody/projector")
        assert projector.encoder == "whisperclip"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "hinge"], "loss='hinge' is unknown"),
        (["--fusion", "last_n", "--n", "2"], "needs the blocks of whisperclip"),
        (["--validation", "0"], "share to validate on"),
        (["--precision", "fp8"], "precision='fp8' is unknown"),
        (["--batch-size", "1"], "a batch of one pair has no other pair to be compared with"),
        (["--learning-rate", "1e30"], "training diverged: the "),
    ],
)
def test_what_is_wrong_is_said(features, tmp_path, arguments, message):
    result = run(features, "--out", tmp_path / "out", *QUICK, *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_that_is_none(tmp_path):
    result = run(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "isn't a features folder" in result.stderr
