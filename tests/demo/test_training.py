"""The scripts that train and measure the miniature: what they share, and the card that they write."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from llava_soundclip.demo import SOUNDS

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "demo"
RECIPE = ROOT / "recipes" / "miniature"
FIGURES = RECIPE / "figures"
MODULES = (
    *("ablations", "all", "card", "common", "measure", "settings", "sound_projector", "tradeoff"),
    *("voices", "world"),
)


@pytest.fixture(scope="module")
def scripts():
    """Import scripts that are run by path: their folder is on the import path only meanwhile."""
    sys.path.insert(0, str(RECIPE))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(RECIPE))
        for name in MODULES:
            sys.modules.pop(name, None)


def test_the_card_shows_what_was_measured(scripts, tmp_path):
    card = tmp_path / "README.md"
    text = (WEIGHTS / "README.md").read_text()
    card.write_text(text)
    figures = json.loads((FIGURES / "measured.json").read_text())
    scripts["card"].write_card(card, figures)
    assert card.read_text() == text
    figures["prepared: silence"]["1 named"]["share"] = 0.123
    scripts["card"].write_card(card, figures)
    assert "0.12 (" in card.read_text() and card.read_text() != text


def test_the_page_on_tokens_shows_what_was_measured(scripts, tmp_path):
    page = tmp_path / "tokens.md"
    text = (ROOT / "docs" / "tokens.md").read_text()
    page.write_text(text)
    figures = json.loads((FIGURES / "measured.json").read_text())
    scripts["card"].write_tokens(page, figures)
    assert page.read_text() == text
    figures["stock: scenes"]["drop, 9, random, projected, visible"]["same kinds as zero"]["share"] = 0.123
    scripts["card"].write_tokens(page, figures)
    assert "0.12 (" in page.read_text()


def test_the_page_on_the_tradeoff_shows_what_was_measured(scripts, tmp_path):
    card, page = scripts["card"], tmp_path / "tradeoff.md"
    text = (ROOT / "docs" / "tradeoff.md").read_text()
    page.write_text(text)
    figures = json.loads((FIGURES / "tradeoff.json").read_text())
    card.write_between_marks(page, card.tradeoff(figures))
    assert page.read_text() == text
    figures["stock, unseen"]["differences"]["raw - raw, noise"]["BLEU"][1] = -0.987
    card.write_between_marks(page, card.tradeoff(figures))
    assert "0.17 (-0.99 to 0.26)" in page.read_text()


def figure(value):
    return {"value": value, "low": value - 0.123456, "high": value + 0.1, "n": 5, "level": 0.95}


def test_the_figures_of_a_run_are_collected(scripts, tmp_path):
    captions = {
        "clips": {"a": {}, "b": {}},
        "metrics": {
            "BLEU": {
                "figures": {"raw": figure(0.5), "projected": figure(0.25)},
                "differences": [{"first": "raw", "second": "projected", **figure(0.25)}],
            }
        },
    }
    ranks = {name: figure(2) for name in ("mean_rank", "R@1", "R@3", "R@10")}
    retrieval = {
        "clips": 3,
        "protocol": "all at once",
        "figures": {"raw": {"A2V": ranks, "V2A": ranks}},
        "chance": {"mean_rank": 2.0, "R@1": 1 / 3, "R@3": 1.0, "R@10": 1.0},
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "retrieval.json").write_text(json.dumps(retrieval))
    found = scripts["tradeoff"].collected(tmp_path)
    assert found["clips"] == 2 and found["recordings"] == 5 and "information" not in found
    assert found["captions"] == {
        "raw": {"BLEU": [0.5, 0.3765, 0.6]},
        "projected": {"BLEU": [0.25, 0.1265, 0.35]},
    }
    assert found["differences"] == {"raw - projected": {"BLEU": [0.25, 0.1265, 0.35]}}
    assert found["retrieval"]["figures"]["raw"]["V2A"]["R@10"] == [2.0, 1.877, 2.1]
    assert found["retrieval"]["chance"] == {"mean rank": 2.0, "R@1": 0.3333, "R@3": 1.0, "R@10": 1.0}
    bounds = {critic: {**figure(1), "at_most": 3.2958, "tau": 0.1} for critic in ("cosine", "linear")}
    probes = {name: figure(0.5) for name in ("raw", "projected", "picture", "lost")}
    information = {
        "shared": {name: bounds for name in ("raw", "projected", "gain")},
        "unique": {"sounding": {"chance": 0.1, **probes}},
    }
    (tmp_path / "information.json").write_text(json.dumps(information))
    found = scripts["tradeoff"].collected(tmp_path)["information"]
    assert found["at most"] == 3.3 and found["linear"]["gain"] == [1.0, 0.8765, 1.1]
    assert found["probes"]["sounding"] == {"chance": 0.1, **{name: [0.5, 0.3765, 0.6] for name in probes}}


def test_the_page_on_ablations_shows_what_was_measured(scripts, tmp_path):
    page = tmp_path / "ablations.md"
    text = (ROOT / "docs" / "ablations.md").read_text()
    page.write_text(text)
    results = json.loads((FIGURES / "ablations.json").read_text())
    ablations = scripts["ablations"]
    keys = {row.key for rows in ablations.TABLES.values() for row in rows} | set(ablations.CONTROLS)
    assert keys == results.keys() and all(len(seeds) == ablations.SEEDS for seeds in results.values())
    scripts["card"].write_between_marks(page, ablations.render(results))
    assert page.read_text() == text
    results["cosine, average_all"]["0"]["A2V mean_rank"] += 50
    scripts["card"].write_between_marks(page, ablations.render(results))
    assert page.read_text() != text


def test_a_seed_leaves_one_recording_of_each_kind_out_that_has_several(scripts):
    ablations = scripts["ablations"]
    kinds = {"dog": ["recording 0", "recording 1", "held out 0"], "cat": ["recording 0", "recording 1"]}
    sources = [f"{kind}, {name}" for kind, names in kinds.items() for name in names * 3]
    sources += ["rain, recording 0", "dog, imitation 1", "cat, imitation 2", "bell, imitation 3"]
    chosen = [ablations.left_out(sources, seed) for seed in range(6)]
    for each in chosen:
        assert sorted(source.split(",")[0] for source in each) == ["cat", "dog"]
    assert len(set().union(*chosen)) == 5 and not any(
        "imitation" in source for source in set().union(*chosen)
    )
    rows = ablations.Rows(torch.arange(4.0)[:, None], torch.arange(4.0)[:, None], list("abab"), list("wxyz"))
    tested, kept = rows.split({"x", "z"})
    assert (tested.sources, kept.sources) == (["x", "z"], ["w", "y"])
    assert tested.audio.flatten().tolist() == [1, 3] and kept.kinds == ["a", "a"]


def test_the_clips_are_a_table_that_features_reads(scripts, tmp_path):
    from llava_soundclip.features import read_clips

    sound_projector, world = scripts["sound_projector"], scripts["world"]

    small = SimpleNamespace(
        recordings={kind: [np.sin(np.arange(8000) / 9)] * 2 for kind in world.SOUNDING},
        held_out={kind: [np.sin(np.arange(8000) / 5)] * (kind == "dog") for kind in world.SOUNDING},
        scene=lambda kinds, rng: (rng.integers(0, 255, (96, 96, 3), dtype=np.uint8), None),
    )
    tables = sound_projector.write_clips(small, tmp_path, clips=3, held_out=2)
    known, unseen = (read_clips([str(table)]) for table in tables)
    assert len(known) == 3 * len(world.SOUNDING) and len(unseen) == 2
    assert {clip.source for clip in unseen} == {"dog, held out 0"}
    assert all(Path(clip.sound).is_file() and Path(clip.picture).is_file() for clip in known + unseen)
    before = tables[0].read_bytes()
    assert sound_projector.write_clips(small, tmp_path, clips=9) == tables  # they are there
    assert tables[0].read_bytes() == before


def test_captions_are_compared_by_what_they_name(scripts):
    kinds_in = scripts["measure"].kinds_in
    assert kinds_in("I hear a dog. I see a cat.") == kinds_in("I see a cat. I hear a dog, a dog.")
    assert kinds_in("I hear a dog. I see a cat.") != kinds_in("I hear a cat. I see a dog.")
    assert kinds_in("Nothing.") == set()


def test_every_setting_of_the_figures_is_one_that_is_measured(scripts):
    measure, figures = scripts["measure"], json.loads((FIGURES / "measured.json").read_text())
    for recipe in scripts["settings"].TOKENS:
        settings = [f"{name}, {place}" for place in measure.PLACES for name in measure.scene_settings(recipe)]
        assert settings == list(figures[f"{recipe}: scenes"])
    settings = measure.scene_settings("stock")
    tokens, norm, setting = settings["drop, 18, similar, noise"]
    assert (tokens, norm, setting.alignment, setting.control) == ("drop", "keep", "projected", "noise")
    assert settings["zero, 9, random, projected"][2].control == "random"
    assert settings["drop, 18, similar, raw, matched"][1] == "match"


def test_another_recording_is_of_nothing_that_the_scene_shows(scripts):
    sources = ["dog", "cat", "cow", "dog", "cat", "cow"]
    scenes = [["dog", "cat"], ["cat", "dog"], ["dog"], ["apple"], ["cat", "rose"], ["cow", "cat"]]
    assert scripts["measure"].foreign(sources, scenes) == [2, 2, 4, 4, 5, 0]


def test_captions_are_made_once(scripts, tmp_path):
    file, made = tmp_path / "captions.jsonl", []

    def make(text):
        made.append(text)
        return [text, text]

    captions = scripts["measure"].Captions(file)
    assert captions.get("zero, 9", make, "a dog") == ["a dog", "a dog"]
    resumed = scripts["measure"].Captions(file)
    assert resumed.get("zero, 9", make, "a cat") == ["a dog", "a dog"]
    assert resumed.get("zero, 18", make, "a cat") == ["a cat", "a cat"]
    assert made == ["a dog", "a cat"]


def test_reports_are_made_without_touching_a_page(scripts, tmp_path, monkeypatch, capsys):
    tradeoff, page = scripts["tradeoff"], tmp_path / "tradeoff.md"
    page.write_text("<!-- measured -->\nold\n<!-- /measured -->\n")

    def measure(work, table, name, recipe):
        (tmp_path / "report.html").write_text(f"{name}, {recipe}")
        return tmp_path

    monkeypatch.setattr(tradeoff, "start", lambda arguments: None)
    monkeypatch.setattr(tradeoff, "write_clips", lambda *arguments: {"scenes": "table", "unseen": "table"})
    monkeypatch.setattr(tradeoff, "measure", measure)
    monkeypatch.setattr(tradeoff, "collected", lambda runs: {"folder": runs.name, "BLEU": [0.5, 0.25, 1.0]})
    monkeypatch.setattr(tradeoff, "tradeoff", lambda figures: "\n".join(figures) + "\n")
    monkeypatch.setattr(tradeoff, "TRADEOFF", tmp_path / "tradeoff.json")
    kept = {"prepared, unseen": {"BLEU": [0.125, 0.0, 1.0]}}
    (tmp_path / "tradeoff.json").write_text(json.dumps(kept))
    out = tmp_path / "build" / "reports"
    monkeypatch.setattr(sys, "argv", ["tradeoff.py", "--out", str(out)])
    tradeoff.main()
    assert sorted(file.stem for file in out.iterdir()) == [
        "scenes-prepared",
        "scenes-stock",
        "unseen-prepared",
        "unseen-stock",
    ]
    assert (out / "unseen-stock.html").read_text() == "unseen, stock" and "old" in page.read_text()
    assert "report 4 of 4: unseen, stock" in capsys.readouterr().out
    assert json.loads((tmp_path / "tradeoff.json").read_text()) == kept
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--page", str(page), "--set", "scenes"])
    tradeoff.main()
    assert "stock, scenes" in page.read_text() and "old" not in page.read_text()
    written = (tmp_path / "tradeoff.json").read_text()
    found = {"folder": tmp_path.name, "BLEU": [0.5, 0.25, 1.0]}
    assert json.loads(written) == {**kept, "prepared, scenes": found, "stock, scenes": found}
    assert "[0.5, 0.25, 1.0]\n" in written  # an interval per line


def test_the_weights_stay_small():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) < 20e6


def test_every_stage_is_there(scripts):
    for script, *_ in scripts["all"].STAGES:
        assert (RECIPE / script).is_file()
    for name in scripts["all"].FILES:
        assert (WEIGHTS / name).is_file()


def train(scripts, folder, steps, stop=None):
    """Train a small module, stopped before step `stop`; its weights."""
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)

    def loss(step):
        if step == stop:
            raise KeyboardInterrupt
        batch = torch.from_numpy(np.random.default_rng(step).normal(0, 1, (8, 4))).float()
        return module(batch).square().sum()

    scripts["common"].train(folder / "module.pt", {"module": module}, optimiser, steps, loss, warmup=3)
    return module.weight.detach().clone()


def test_training_that_was_stopped_goes_on_as_if_it_never_was(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts["common"], "SAVED_EVERY", 0)
    (tmp_path / "whole").mkdir()
    whole = train(scripts, tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        train(scripts, tmp_path, 12, stop=7)
    assert torch.equal(train(scripts, tmp_path, 12), whole)


def test_every_sounding_kind_can_be_imitated(scripts):
    voices, world = scripts["voices"], scripts["world"]
    assert set(voices.VOICES) == set(world.SOUNDING) == set(SOUNDS)
    for kind in world.SOUNDING:
        first, again, other = (voices.imitate(kind, 1.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.dtype == np.float32 and len(first) <= 1.5 * voices.RATE
        assert np.isfinite(first).all() and np.abs(first).max() == pytest.approx(1)
        assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 12.0])
def test_a_varied_recording_is_one_to_five_seconds_long(scripts, seconds):
    rate = scripts["world"].RATE
    wave = np.sin(np.arange(int(seconds * rate)) / 20).astype(np.float32)
    for seed in range(20):
        varied = scripts["world"].augment(wave, np.random.default_rng(seed))
        assert varied.dtype == np.float32 and rate <= len(varied) <= 5 * rate
        assert np.isfinite(varied).all() and 0 < np.abs(varied).max() <= 1


@pytest.mark.parametrize("equal", [False, True])
def test_retrieval_is_that_of_a_slow_loop(scripts, monkeypatch, equal):
    """Equal vectors are at chance. They used to be found first, as ties counted for the right answer."""
    measure = scripts["measure"]
    n = len(SOUNDS) * measure.PER_KIND
    sounds, pictures = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(3))
    if equal:
        sounds, pictures = torch.ones(2, n, 5)
    monkeypatch.setattr(measure, "picture", lambda *arguments: None)
    monkeypatch.setattr(measure, "augment", lambda wave, rng: wave)
    soundclip = SimpleNamespace(
        processor=SimpleNamespace(image_processor=lambda *_, **__: {"pixel_values": None}),
        host=SimpleNamespace(tower_tokens=lambda pixels: pictures[:, None]),
        encoder=SimpleNamespace(embed=lambda waves, rate: sounds),
        align=lambda x: x,
    )
    found = measure.measure_retrieval(SimpleNamespace(sound=lambda kind, rng: None), soundclip)
    for way, (queries, answers) in {"A2V": (sounds, pictures), "V2A": (pictures, sounds)}.items():
        cosines = torch.cosine_similarity(queries[:, None], answers[None], dim=2)
        places = [1 + (row > row[i]).sum().item() for i, row in enumerate(cosines)]
        if equal:
            places = [(n + 1) / 2] * n
        part = found[f"raw, {way}"]
        assert part["mean rank"] == pytest.approx(np.mean(places), abs=0.006)
        for top in (1, 3, 10):
            share = top / n if equal else np.mean(np.array(places) <= top)
            assert part[f"Top-{top}"]["share"] == pytest.approx(share, abs=6e-4)


def test_wilsons_interval(scripts):
    from scipy.stats import binomtest

    for hits in (0, 3, 17, 20):
        low, high = binomtest(hits, 20).proportion_ci(0.95, "wilson")
        figure = scripts["measure"].share([True] * hits + [False] * (20 - hits))
        assert figure["share"] == hits / 20 and figure["n"] == 20
        assert figure["interval"] == pytest.approx([low, high], abs=2e-3)


@pytest.mark.parametrize(
    ("caption", "is_heard", "is_seen", "repeats"),
    [
        ("I hear a dog. I see a guitar.", True, False, False),
        ("I see a dog.", False, True, False),
        ("I hear a car. I see a dog and a dog.", False, True, True),
        ("I hear a dogma.", False, False, False),
    ],
)
def test_what_counts_as_named(scripts, caption, is_heard, is_seen, repeats):
    measure = scripts["measure"]
    assert measure.heard(caption, "dog", "prepared") == is_heard
    assert measure.seen(caption, "dog", "prepared") == is_seen
    assert measure.heard(caption, "dog", "stock") == (is_heard or is_seen)
    assert measure.repeats(caption) == repeats
