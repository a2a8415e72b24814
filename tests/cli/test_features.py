"""The command `features`, from files to a folder."""

import json
import os
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from llava_soundclip.cli.features import features
from llava_soundclip.encoders import load_encoder
from llava_soundclip.features import Extraction, FeatureFolder, VisionTower, cluster
from llava_soundclip.media import load_audio

app = typer.Typer()
app.command()(features)


@pytest.fixture
def run(tower_folder, whisper_file):
    def call(*arguments, ends=0):
        fixed = ["--tower", tower_folder, "--checkpoint", whisper_file, "--workers", 0, "--device", "cpu"]
        result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *fixed)])
        assert result.exit_code == ends, result.output
        return result.output

    return call


def test_a_folder_of_films(run, films, tmp_path, whisper_file):
    out = tmp_path / "features"
    assert f"11 of 11 clips' features made in {out}" in run(films, "--out", out).replace("\n", "")
    found = FeatureFolder(out)
    found.verify()
    assert (found.header.frames, found.header.dtype, found.header.patches) == (1, "float16", False)
    assert found.header.layers == 2 and found.header.tower_layer == -2
    encoder = load_encoder("whisperclip", checkpoint=whisper_file)
    sound = load_audio(films / "long.mp4", sampling_rate=16_000)
    audio, _ = found.rows(torch.tensor([10]))
    torch.testing.assert_close(encoder.fuse(audio), encoder.embed([sound], 16_000), rtol=1e-2, atol=1e-2)
    assert "0 of 11 clips' features made" in run(films, "--out", out)


def test_options(run, films, tmp_path):
    out = tmp_path / "features"
    options = ("--frames", 2, "--patches", "--dtype", "float32", "--encoder", "whisper", "--shard-size", 4)
    run(films, "--out", out, *options)
    header = FeatureFolder(out).header
    assert (header.frames, header.dtype, header.patches, header.layers) == (2, "float32", True, None)
    assert len(list((out / "shards").iterdir())) == 3
    output = run(films, "--out", out, ends=2)
    assert "features of another kind" in output and "dtype is 'float32' there and 'float16' here" in output


def test_the_encoders_options(run, films, tmp_path):
    run(films, "--out", tmp_path / "f", "--encoder-option", "window=clip")
    assert FeatureFolder(tmp_path / "f").header.encoder["window"] == "clip"


def test_tables(run, films, tmp_path):
    rows = [{"film": "long.mp4", "from": i / 2, "to": i / 2 + 0.5, "key": f"k{i}"} for i in range(4)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--path-column", "film", "--start-column", "from", "--end-column", "to", "--id-column", "key"]
    run(tmp_path / "table.jsonl", "--root", films, "--out", tmp_path / "f", *columns)
    found = FeatureFolder(tmp_path / "f")
    assert found.ids == ["k0", "k1", "k2", "k3"] and set(found.sources) == {"long.mp4"}
    assert found.table.column("start").to_pylist() == [0.0, 0.5, 1.0, 1.5]


def test_ave2(run, films, tmp_path):
    row = {"youtube_id": "long", "segment_start_time": 1.0, "segment_end_time": 2.0}
    (tmp_path / "train_00000.json").write_text(json.dumps([row]))
    table = ("--ave2", "--root", films, "--out", tmp_path / "f")
    run(tmp_path / "train_00000.json", *table)
    assert FeatureFolder(tmp_path / "f").ids == ["long.mp4#1-2"]
    output = run(tmp_path / "train_00000.json", *table, "--start-column", "begin", ends=2)
    assert "has no column 'begin' for the start; its columns are youtube_id, segment_start_time" in output


def test_bad_clips_end_with_1(run, films, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    output = run(films, tmp_path / "bad.mp4", "--out", tmp_path / "f", ends=1)
    assert "11 of 12 clips' features made" in output
    assert "1 of 12 clips have no features:" in output
    assert "bad.mp4: it isn't a media file" in output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--dtype", "int8"], "float16 or float32"),
        (["--encoder", "none"], "unknown encoder 'none'"),
        (["--frames", "0"], "frames"),
    ],
)
def test_wrong_options_end_with_2(run, films, tmp_path, arguments, reason):
    assert reason in run(films, "--out", tmp_path / "f", *arguments, ends=2)


def test_a_dataset_without_the_package(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "datasets" in run("dataset:user/set", "--out", tmp_path / "f", ends=2)


def test_without_ray(films, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, [str(films), "--out", str(tmp_path / "f"), "--ray", "auto"])
    assert result.exit_code == 2 and "pip install 'llava-soundclip[ray]'" in result.output.replace("\n", " ")


def test_what_does_not_go_with_ray(run, films, tmp_path):
    assert "can't be combined with --ray" in run(films, "--out", tmp_path / "f", "--ray", "auto", ends=2)


def test_what_ray_is_told(films, tower_folder, whisper_file, tmp_path, monkeypatch):
    calls = []

    def on_ray(clips, hearing, seeing, out, **options):
        calls.append((len(clips), hearing("cpu"), seeing("cpu"), out, options))
        return Extraction()

    monkeypatch.setattr(cluster, "extract_features_on_ray", on_ray)
    monkeypatch.chdir(tower_folder.parent)  # the nodes' processes have another working folder
    arguments = ["--out", "f", "--tower", tower_folder.name, "--ray", "host:6379", "--frames", 2, "--patches"]
    arguments += ["--encoder-option", "window=clip", "--checkpoint", os.path.relpath(whisper_file)]
    places = []
    monkeypatch.setattr(VisionTower, "load", lambda place, device: places.append((place, device)))
    result = CliRunner().invoke(app, [str(argument) for argument in (films, *arguments)])
    assert result.exit_code == 0, result.output
    [(count, encoder, _, out, options)] = calls
    assert places == [(str(tower_folder), "cpu")]
    assert count == 11 and str(out) == "f"
    assert dict(encoder.signature())["window"] == "clip" and encoder.name == "whisperclip"
    assert options == {
        "address": "host:6379",
        "frames": 2,
        "patches": True,
        "dtype": "float16",
        "shard_size": 1000,
        "batch_size": 8,
        "progress": True,
    }
