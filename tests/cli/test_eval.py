"""`llava-soundclip eval retrieval`: what is measured on what, and that the figures are those of a slow way."""

import json

import pytest
import torch
from typer.testing import CliRunner

from llava_soundclip import Projector, cli
from llava_soundclip.evaluation.retrieval import retrieval
from llava_soundclip.features import FeatureFolder
from llava_soundclip.features.splits import split_by_source
from llava_soundclip.training.fit import Recipe, train
from tests.training.making import LAYERS, WIDTH, write_features

runner = CliRunner()
RECIPE = Recipe(hidden=24, batch_size=32, epochs=4, learning_rate=3e-3, validation=0.3, seed=5)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def projector(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("projector")
    train(features, folder, RECIPE)
    return folder


def run(*arguments):
    return runner.invoke(cli.app, ["eval", "retrieval", *map(str, arguments)])


def figures(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_vectors_that_overflow_are_refused_with_their_clips(features, tmp_path):
    projector = Projector(12, WIDTH, 8, **Projector.labels(FeatureFolder(features).header.encoder))
    with torch.no_grad():
        for weight in projector.parameters():
            weight.mul_(1e38)
    projector.save_pretrained(tmp_path)
    result = run(features, "--projector", tmp_path)
    assert result.exit_code == 2 and "R@1" not in result.stdout
    assert (
        "the projected sounds of 240 of 240 clips are NaN or infinite: '00000', '00001', '00002' ..."
        in result.stderr
    )


def test_what_was_kept_aside_is_measured(features, projector, tmp_path):
    result = run(features, "--projector", projector, "--json", tmp_path / "out.json", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    found = figures(tmp_path / "out.json")
    folder = FeatureFolder(features)
    rows = split_by_source(folder.sources, 0.3, 5)[1]
    assert found["rows"] == "validation" and found["clips"] == len(rows) < len(folder) / 2
    audio, cls = folder.rows(rows)
    raw = torch.nn.functional.pad(audio, (0, WIDTH - audio.shape[1]))
    with torch.no_grad():
        projected = Projector.from_pretrained(projector)(audio)
    for name, f_a in (("raw", raw), ("projected", projected)):
        for side, expected in retrieval(f_a, cls, seed=3).items():
            for figure in ("mean_rank", "R@1", "R@3", "R@10"):
                value = found["figures"][name][side][figure]
                assert value["value"] == pytest.approx(expected.as_dict()[figure], rel=1e-5)
                assert value["low"] <= value["value"] <= value["high"]
    gain = found["gain"]["A2V"]["mean_rank"]
    assert gain["high"] < 0  # it learnt something
    assert gain["value"] == pytest.approx(
        found["figures"]["projected"]["A2V"]["mean_rank"]["value"]
        - found["figures"]["raw"]["A2V"]["mean_rank"]["value"],
        rel=1e-5,
    )
    assert found["chance"]["mean_rank"] == (min(len(rows), 100) + 1) / 2
    assert "llava-soundclip" in found["command"] and found["provenance"]["projector"]["audio_dim"] == 12
    assert "projected A2V" in result.stdout and "chance" in result.stdout


def test_all_clips_where_it_is_asked_for_or_it_was_trained_elsewhere(features, projector, tmp_path):
    assert (
        run(features, "--projector", projector, "--rows", "all", "--full", "--json", tmp_path / "a").exit_code
        == 0
    )
    assert (figures(tmp_path / "a")["rows"], figures(tmp_path / "a")["clips"]) == ("all", 240)
    assert figures(tmp_path / "a")["chance"]["mean_rank"] == 120.5
    other = write_features(tmp_path / "other", clips=30)
    assert run(other, "--projector", projector, "--json", tmp_path / "b").exit_code == 0
    assert (figures(tmp_path / "b")["rows"], figures(tmp_path / "b")["clips"]) == ("all", 30)
    refused = run(other, "--projector", projector, "--rows", "validation")
    assert refused.exit_code == 2 and "that is another folder" in refused.stderr


def test_raw_alone_and_any_clip_of_the_film(features, tmp_path):
    assert run(features, "--json", tmp_path / "pair").exit_code == 0
    assert run(features, "--right", "source", "--json", tmp_path / "source").exit_code == 0
    pair, source = figures(tmp_path / "pair"), figures(tmp_path / "source")
    assert list(pair["figures"]) == ["raw"] and pair["gain"] == {}
    assert source["right"] == "source"
    assert source["chance"]["mean_rank"] < pair["chance"]["mean_rank"]


def test_mixes_and_histograms(features, projector, tmp_path):
    assert (
        run(features, "--projector", projector, "--alphas", "0.5,1,0", "--json", tmp_path / "a").exit_code
        == 0
    )
    found = figures(tmp_path / "a")
    for name, same in (("alpha 1", "raw"), ("alpha 0", "projected")):
        assert found["figures"][name] == found["figures"][same]
    ranks = [
        found["figures"][name]["A2V"]["mean_rank"]["value"] for name in ("projected", "alpha 0.5", "raw")
    ]
    assert ranks[0] < ranks[1] < ranks[2]
    for name, sides in found["histogram"].items():
        for side, counts in sides.items():
            assert sum(counts) == len(counts) * len(found["figures"][name][side]["mean_rank"]["repeats"])
            share = sum(counts[:3]) / sum(counts)
            assert share == pytest.approx(found["figures"][name][side]["R@3"]["value"])


def test_blocks_are_fused_as_the_projector_has_it(tmp_path):
    blocks = write_features(tmp_path / "blocks", layers=LAYERS)
    train(blocks, tmp_path / "projector", Recipe(hidden=24, epochs=1, fusion="last_n", n=2))
    assert (
        run(
            blocks, "--projector", tmp_path / "projector", "--rows", "all", "--json", tmp_path / "a"
        ).exit_code
        == 0
    )
    audio, cls = FeatureFolder(blocks).rows(torch.arange(240))
    with torch.no_grad():
        f_a = Projector.from_pretrained(tmp_path / "projector")(audio[:, -2:].mean(1))
    found = figures(tmp_path / "a")["figures"]["projected"]["V2A"]["mean_rank"]["value"]
    assert found == pytest.approx(retrieval(f_a, cls)["V2A"].mean_rank)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "isn't a features folder"),
        (["{features}", "--projector", "{other}"], "audio_dim is 5 in the projector and 12 here"),
        (["{features}", "--alphas", "0.5"], "give a projector"),
        (["{features}", "--right", "label"], "right is pair or source, not 'label'"),
        (["{features}", "--rows", "some"], "rows are validation or all, not 'some'"),
        (["{features}", "--rows", "validation"], "the projector has no recipe.json"),
    ],
)
def test_what_is_refused(features, tmp_path, arguments, message):
    Projector(5, WIDTH, 8).save_pretrained(tmp_path / "other")
    result = run(*(text.format(features=features, other=tmp_path / "other") for text in arguments))
    assert result.exit_code == 2 and message in result.stderr


@pytest.fixture
def told(tmp_path):
    """Captions of four clips in two settings, and what they hold."""
    rows = [
        {"clip": f"{clip}.mp4", "caption": text, "setting": setting, "alignment": setting, "k": 9}
        for clip in "abcd"
        for setting, text in (("raw", "a dog barks very loudly"), ("projected", f"a cat {clip} meows"))
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refs = [
        {
            "id": f"{clip}.mp4",
            "references": ["a dog barks very loudly"],
            "sounding": ["dog"],
            "silent": ["mug"],
        }
        for clip in "abcd"
    ]
    (tmp_path / "refs.jsonl").write_text("\n".join(map(json.dumps, refs)))
    return tmp_path


def evaluate(folder, *arguments):
    known = [
        "captions",
        folder / "captions.jsonl",
        "--references",
        folder / "refs.jsonl",
        "--json",
        folder / "out.json",
    ]
    result = runner.invoke(cli.app, ["eval", *map(str, [*known, *arguments])])
    return result, figures(folder / "out.json") if result.exit_code == 0 else None


def test_captions_are_scored(told):
    result, found = evaluate(told, "--metrics", "bleu,rouge", "--against", "raw")
    assert result.exit_code == 0, result.stderr
    assert found["metrics"]["BLEU"]["figures"]["raw"]["value"] == pytest.approx(1)
    assert found["metrics"]["sounding named"]["figures"]["raw"]["value"] == 1
    assert found["metrics"]["sounding named"]["figures"]["projected"]["value"] == 0
    assert found["options"]["projected"] == {"alignment": "projected", "k": 9}
    clip = found["clips"]["b.mp4"]
    assert clip["captions"] == {"raw": "a dog barks very loudly", "projected": "a cat b meows"}
    assert clip["scores"]["ROUGE-1"]["raw"] == pytest.approx(1)
    assert "-1 (-1 to -1) above raw" in result.stdout
    assert 'unseen named\n  raw        –   no clip has anything in "unseen"\n' in result.stdout


def test_a_judge_is_asked_and_told_of(told, monkeypatch):
    from tests.evaluation.judge_server import JudgeServer

    with JudgeServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        result, found = evaluate(
            told, "--metrics", "none", "--judge", "openai:any", "--judge-url", server.url
        )
    assert result.exit_code == 0, result.stderr
    assert set(found["judge"]["dimensions"]) >= {"fluency", "usefulness"}
    assert found["judge"]["dimensions"]["fluency"]["figures"].keys() == {"raw", "projected"}
    assert "the judge: about" in result.stderr and "usefulness" in result.stdout
    assert (told / "captions.judged.jsonl").exists()


def test_of_films_a_judge_has_the_references(told, monkeypatch):
    from tests.evaluation.judge_server import JudgeServer

    rows = [json.loads(line) for line in (told / "captions.jsonl").read_text().splitlines()]
    (told / "captions.jsonl").write_text("\n".join(json.dumps({**row, "image": row["clip"]}) for row in rows))
    with JudgeServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        result, found = evaluate(
            told, "--metrics", "none", "--judge", "openai:any", "--judge-url", server.url
        )
    assert result.exit_code == 0, result.stderr
    assert found["judge"]["counts"] == {"raw": {"scored": 4}, "projected": {"scored": 4}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "meteor"], "metrics are a list of bleu"),
        (["--metrics", "none"], "nothing to do"),
        (["--metrics", "bleu", "--against", "stock"], "there is no setting 'stock'"),
        (["--metrics", "none", "--judge", "claude"], "openai:MODEL"),
    ],
)
def test_what_captions_refuse(told, arguments, message):
    result, _ = evaluate(told, *arguments)
    assert result.exit_code == 2 and message in result.stderr
