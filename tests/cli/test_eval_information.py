"""`llava-soundclip eval information`: which clips and labels are measured, and what a user is told."""

import json

import pytest
import torch
from typer.testing import CliRunner

from llava_soundclip import Projector, cli
from llava_soundclip.evaluation.captions.references import read_labels
from llava_soundclip.evaluation.information import measure_information
from llava_soundclip.evaluation.information.limits import LIMITS
from llava_soundclip.evaluation.report import write_report
from llava_soundclip.features import FeatureFolder
from llava_soundclip.features.splits import split_by_source
from llava_soundclip.training.fit import Recipe, train
from tests.training.making import WIDTH, write_features

RECIPE = Recipe(hidden=24, batch_size=32, epochs=4, learning_rate=3e-3, validation=0.4, seed=5)
CLIPS = 90  # of thirty films


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features"), clips=CLIPS)


@pytest.fixture(scope="module")
def projector(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("projector")
    train(features, folder, RECIPE)
    return folder


def write_lines(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def heard(features):
    """What the first numbers of a sound tell, by clip."""
    folder = FeatureFolder(features)
    audio, _ = folder.rows(torch.arange(len(folder)))
    return {
        id: {"kind": "dog" if row[0] > 0 else "cat", "loudness": float(row[1]), "near": bool(row[2] > 0)}
        for id, row in zip(folder.ids, audio, strict=True)
    }


@pytest.fixture(scope="module")
def labels(features, tmp_path_factory):
    rows = [{"id": id, **values} for id, values in heard(features).items()]
    return write_lines(
        tmp_path_factory.mktemp("labels") / "labels.jsonl", [*rows, {"id": "x", "kind": "bee"}]
    )


def run(*arguments):
    return CliRunner().invoke(cli.app, ["eval", "information", *map(str, arguments)])


def figures(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(features, projector, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "information.json"
    result = run(features, "--projector", projector, "--labels", labels, "--seed", 3, "--json", out)
    assert result.exit_code == 0, result.stderr
    return result.stdout, out


def test_what_was_kept_aside_is_measured(measured, features, projector):
    found, folder = figures(measured[1]), FeatureFolder(features)
    rows = split_by_source(folder.sources, 0.4, 5)[1]
    assert found["rows"] == "validation" and found["clips"] == len(rows) < CLIPS / 2
    values = heard(features)
    expected = measure_information(
        folder,
        Projector.from_pretrained(projector),
        rows,
        {name: {id: each[name] for id, each in values.items()} for name in ("kind", "loudness", "near")},
        seed=3,
    )
    assert {name: found[name] for name in expected} == json.loads(json.dumps(expected))
    assert [part["measure"] for part in found["unique"].values()] == [
        *("balanced accuracy", "R2", "balanced accuracy")
    ]
    assert found["unique"]["loudness"]["raw"]["value"] > 0.9
    assert found["unmatched"] == 1 and found["unmeasured"] == []
    provenance = found["provenance"]
    assert provenance["features"] == folder.digest() and provenance["projector"]["audio_dim"] == 12
    assert len(provenance["labels"]) == 16 and "llava-soundclip" in found["command"]


def test_the_text_has_the_figures_and_what_each_cannot_show(measured):
    text, found = measured[0], figures(measured[1])
    words = " ".join(text.split())
    for sentence in LIMITS.values():
        assert sentence in words

    def told(figure):
        return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"

    shared, near, dimension = found["shared"], found["unique"]["near"], found["dimension"]
    sides = ("raw", "projected")
    for critic in ("cosine", "linear"):
        row = " ".join(told(shared[side][critic]) for side in (*sides, "gain"))
        assert f"{critic} bound {row}" in words
    assert "CKA " + " ".join(told(shared[side]["cka"]) for side in sides) in words
    assert "p of independence " + " ".join(f"{shared[side]['p']:.3g}" for side in sides) in words
    read = " ".join(told(near[side]) for side in (*sides, "picture"))
    assert f"near, balanced accuracy, {found['clips']} clips {read} 0.5 {told(near['lost'])}" in words
    for name, key in (("TwoNN", "two_nn"), ("participation ratio", "participation_ratio")):
        row = " ".join(told(dimension[side][key]) for side in (*sides, "picture"))
        assert f"{name} {row}" in words
    assert "1 clips with labels aren't in the folder" in words


def test_all_clips_where_it_is_asked_for_and_raw_alone(features, projector, tmp_path):
    arguments = (features, "--projector", projector, "--rows", "all", "--json", tmp_path / "a")
    assert run(*arguments).exit_code == 0
    assert (figures(tmp_path / "a")["rows"], figures(tmp_path / "a")["clips"]) == ("all", CLIPS)
    result = run(features, "--json", tmp_path / "b")
    found = figures(tmp_path / "b")
    assert result.exit_code == 0 and found["rows"] == "all" and list(found["shared"]) == ["raw"]
    assert found["provenance"]["labels"] is found["provenance"]["projector"] is None
    assert "projected - raw" not in result.stdout and "probe" not in result.stdout.partition("Dimension")[0]
    other = write_features(tmp_path / "other", clips=60)
    refused = run(other, "--projector", projector, "--rows", "validation")
    assert refused.exit_code == 2 and "that is another folder" in refused.stderr


def test_a_references_file_has_labels_too(features, tmp_path):
    """What is rare or all alike there doesn't keep the rest from being measured."""
    kinds = {id: each["kind"] for id, each in heard(features).items()}
    rows = [
        {
            "id": id,
            "references": [f"a {kind}"],
            "source": f"film {number // 3}",
            "sounding": [f"rare {number}"] if number < 6 else [kind] if number > 9 else [kind, "wind"],
            "silent": ["mug"],
        }
        for number, (id, kind) in enumerate(kinds.items())
    ]
    result = run(
        features, "--labels", write_lines(tmp_path / "refs.jsonl", rows), "--json", tmp_path / "a.json"
    )
    assert result.exit_code == 0, result.stderr
    found = figures(tmp_path / "a.json")
    assert list(found["unique"]) == ["sounding"]
    sounding = found["unique"]["sounding"]
    assert sounding["clips"] == CLIPS - 10 and sounding["left_out"] == {"clips": 6, "classes": 6}
    assert sounding["chance"] == 0.5 and sounding["raw"]["low"] > 0.5
    assert found["unmeasured"] == ["the label 'silent': the labels are all alike: nothing can be read off"]
    assert "left out 6 clips of 6 classes that are in one source alone" in result.stdout
    assert "not read: the label 'silent'" in result.stdout


def test_what_is_held_out_together(features, labels, tmp_path):
    for apart, groups in (("source", CLIPS // 3), ("clip", CLIPS)):
        assert run(features, "--labels", labels, "--apart", apart, "--json", tmp_path / apart).exit_code == 0
        found = figures(tmp_path / apart)
        assert found["apart"] == apart and found["unique"]["kind"]["raw"]["n"] == groups
    folder = FeatureFolder(features)
    rows = [{"id": id, "film": source} for id, source in zip(folder.ids, folder.sources, strict=True)]
    result = run(features, "--labels", write_lines(tmp_path / "films.jsonl", rows))
    assert result.exit_code == 2
    assert "the label 'film': a class must have clips in two groups" in result.stderr


NAME = "<script>alert(1)</script>{{ 7 * 7 }}\n\x1b[31m犬"


def test_odd_names_stay_text_in_the_terminal_and_on_the_page(features, tmp_path):
    rows = [{"id": id, NAME: each["kind"]} for id, each in heard(features).items()]
    runs = tmp_path / "runs"
    runs.mkdir()
    labels = write_lines(tmp_path / "labels.jsonl", rows)
    result = run(features, "--labels", labels, "--json", runs / "a.json")
    assert result.exit_code == 0, result.stderr
    assert "{{ 7 * 7 }}\\n\\x1b[31m犬, balanced accuracy" in result.stdout and "\x1b" not in result.stdout
    found = write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list(found["information"][0]["unique"]) == [NAME]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}" in page and "<script" not in page


def test_labels_are_read(tmp_path):
    rows = [
        {"id": "a", "kind": "dog", "level": 1, "near": True, "caption": "x", "image": "a.jpg", "empty": []},
        {"id": 7, "kind": ["cat"], "level": -3.5, "near": None, "reference": "x", "references": ["x"]},
        {"clip": "b", "kind": ["cat", "dog"], "near": False, "source": "film", "empty": ""},
        {"id": "a", "kind": "dog", "place": "yard"},
        {"id": "c", "kind": [3]},
    ]
    assert read_labels(write_lines(tmp_path / "labels.jsonl", rows)) == {
        "kind": {"a": "dog", "7": "cat"},
        "level": {"a": 1, "7": -3.5},
        "near": {"a": True, "b": False},
        "place": {"a": "yard"},
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "labels.jsonl: it has no labels"),
        ([{"id": "00001", "references": ["x"]}], "it has no labels"),
        (
            ["[1]", {"kind": "dog"}, "{"],
            "line 1 isn't a JSON object; line 2 has no \"id\"; line 3 isn't a JSON object",
        ),
        ([{"id": "00001", "kind": {"a": 1}}], "line 1 has an object in 'kind', not a text, a number"),
        (
            [{"id": "00001", "kind": "dog"}, {"id": "00002", "kind": 1}, {"id": "00003", "kind": True}],
            "'kind' is a number in line 2 and a text in line 1; 'kind' is true or false in line 3",
        ),
        (
            [{"id": "00001", "kind": "dog"}, {"id": "00001", "kind": "cat"}],
            "line 2 has another 'kind' of '00001' than a line before",
        ),
        (
            [{"id": f"{name}.mp4", "kind": "dog"} for name in "abcde"],
            "is in {features}: it has labels of a.mp4; b.mp4; c.mp4 and 2 more, and the folder holds 00000; 00001; ",
        ),
        ([{"id": "00001", "kind": "dog"}], "the label 'kind': the labels are all alike"),
        (
            [
                {"id": "00001", "kind": "dog"},
                {"id": "00002", "kind": "cat"},
                {"id": "00003", "place": "yard"},
            ],
            "these have one: cat, dog. Leave them out, or hold out smaller groups; the label 'place': the labels are all alike",
        ),
        (
            [{"id": f"{i:05}", "level": float("inf") if i else 1} for i in range(9)],
            "a label is NaN or infinite",
        ),
    ],
)
def test_labels_that_are_refused(features, tmp_path, rows, message):
    result = run(features, "--labels", write_lines(tmp_path / "labels.jsonl", rows))
    assert result.exit_code == 2 and message.format(features=features) in result.stderr
    assert result.stderr.startswith("Error: ") and not result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "isn't a features folder"),
        (["{features}", "--projector", "{other}"], "audio_dim is 5 in the projector and 12 here"),
        (["{features}", "--labels", "nowhere.jsonl"], "nowhere.jsonl"),
        (["{features}", "--apart", "film"], "source or clip, not 'film'"),
        (["{features}", "--rows", "some"], "rows are validation or all, not 'some'"),
        (["{few}"], "18 distinct vectors are too few for a dimension"),
        (["{none}"], "there are no clips to measure"),
    ],
)
def test_what_is_refused(features, tmp_path, arguments, message):
    Projector(5, WIDTH, 8).save_pretrained(tmp_path / "other")
    places = {
        "features": features,
        "other": tmp_path / "other",
        "few": write_features(tmp_path / "few", clips=18),
        "none": write_features(tmp_path / "none", clips=0),
    }
    result = run(*(text.format(**places) for text in arguments))
    assert result.exit_code == 2 and message in result.stderr
