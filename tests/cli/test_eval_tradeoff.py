"""`llava-soundclip eval tradeoff`: what a user types, on the miniature, and what goes wrong."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava_soundclip import cli, loading
from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, TEXT_ENCODER, WHISPER, is_packaged

runner = CliRunner()
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return runner.invoke(cli.app, [*map(str, arguments)])


def draw(folder, count, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["miniature_clips.py", str(folder), "--count", str(count)])
    runpy.run_path(str(ROOT / "examples" / "miniature_clips.py"), run_name="__main__")
    return [json.loads(line) for line in (folder / "refs.jsonl").read_text().splitlines()]


def test_the_drawn_clips_say_what_is_in_them(tmp_path, monkeypatch, capsys):
    rows = draw(tmp_path / "clips", 26, monkeypatch)
    assert "26 clips and refs.jsonl in" in capsys.readouterr().out
    assert len({row["id"] for row in rows}) == 26
    for row in rows:
        assert (tmp_path / row["id"]).is_file() and row["sounding"] != row["silent"]
        (sound,), (silent,) = row["sounding"], row["silent"]
        assert row["unseen"] in ([], [sound])
        for reference in row["references"]:
            assert sound in reference and silent in reference
    assert sum(bool(row["unseen"]) for row in rows) == 12


@pytest.mark.slow
@pytest.mark.skipif(not all(map(is_packaged, (SMOLLM2, WHISPER, TEXT_ENCODER))), reason=PIP_LINE)
def test_the_miniature_is_measured_and_its_files_fit_the_other_commands(tmp_path, monkeypatch):
    rows = draw(tmp_path / "clips", 26, monkeypatch)[::3]
    references = tmp_path / "refs.jsonl"
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for clip in (tmp_path / "clips").glob("*.mp4"):
        if f"clips/{clip.name}" not in {row["id"] for row in rows}:
            clip.unlink()
    monkeypatch.chdir(tmp_path)
    options = ["--budgets", "", "--alphas", "", "--max-new-tokens", 24, "--examples", 2]
    models = ["--bertscore", "demo", "--clipscore", "demo"]
    result = run("eval", "tradeoff", "clips", "--references", references, "--out", "runs", *options, *models)
    assert result.exit_code == 0, result.stderr
    assert "Does projecting cost quality? (raw against projected, 9 clips)" in result.stdout
    assert result.stdout.rstrip().endswith("runs/report.html")
    assert "note: information was not measured" in result.stderr  # six pairs
    found = json.loads((tmp_path / "runs" / "captions.json").read_text())

    def figure(metric, setting):
        return found["metrics"][metric]["figures"][setting]["value"]

    # Of this model it is known (the card has figures): it hears projected sounds, and raw ones it doesn't.
    for metric in ("sounding named", "unseen named", "CLIPScore", "BERTScore"):
        assert figure(metric, "projected") > figure(metric, "raw"), metric
    assert figure("unseen named", "projected") > 0.7 and figure("unseen named", "projected, noise") < 0.3
    assert figure("played named", "projected, another") > 0.7 > figure("sounding named", "projected, another")
    assert found["metrics"]["BERTScore"]["made_by"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert str(Path.home()) not in json.dumps(found) and str(ROOT) not in json.dumps(found)

    features = ["--checkpoint", "demo", "--encoder-option", "window=clip", "--tower", "demo"]
    assert run("features", "clips", "--out", "features", *features).exit_code == 0
    projector = ROOT / "weights" / "demo" / "projector"
    result = run("eval", "retrieval", "features", "--projector", projector)
    assert result.exit_code == 0 and "9 clips (all)" in result.stdout
    captions = ["eval", "captions", "runs/captions.jsonl", "--references", references, "--metrics", "all"]
    result = run(*captions, *models, "--json", "again.json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("again.json").read_text())["metrics"] == found["metrics"]
    assert run("report", "runs", "--out", "report.html").exit_code == 0
    assert Path("report.html").read_text().count("data:image") >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--references": "gone.jsonl"}, "gone.jsonl"),
        ({"--model": "no/such-model"}, "couldn't connect"),
        ({"--budgets": "9,many"}, "--budgets must be numbers separated by commas, not '9,many'"),
        ({"--alphas": "a half"}, "--alphas must be numbers"),
        ({"--metrics": "bleu,meteor"}, "meteor"),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, monkeypatch, change, message):
    from tests.evaluation.tradeoff.test_run import make_soundclip, write_clips

    folder, references = write_clips(tmp_path, 2)
    if change.get("--model") is None:
        monkeypatch.setattr(loading, "load_soundclip", lambda model, **options: make_soundclip())
    options = {"--references": references, "--out": tmp_path / "runs", "--metrics": "bleu"} | change
    result = run("eval", "tradeoff", folder, *(part for pair in options.items() for part in pair))
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()).replace("│ ", "")
    assert not (tmp_path / "runs" / "captions.jsonl").exists()
