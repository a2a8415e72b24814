"""`eval tradeoff` from clips to a page: on a tiny random LLaVA, whose captions are known from its own handle."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_soundclip import Projector, patch
from llava_soundclip.captioning import Setting
from llava_soundclip.clips import read_clips
from llava_soundclip.evaluation.retrieval import retrieval
from llava_soundclip.evaluation.tradeoff.plan import plan_settings
from llava_soundclip.evaluation.tradeoff.run import measure_tradeoff, tower_of
from llava_soundclip.features import FeatureFolder
from llava_soundclip.media import load_audio, load_frame
from tests.conftest import TinyEncoder, build_tiny_llava, build_tiny_llava_next, build_tiny_processor

RATE = 16_000
NEW = 5
KINDS = ("w4", "w5", "w6", "w7")  # words that the tiny model has


def write_clip(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with wave.open(str(folder / f"{name}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(rng.integers(-30_000, 30_000, 400).astype("<i2").tobytes())
    Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(folder / f"{name}.png")


def write_clips(root: Path, count: int = 8) -> tuple[Path, Path]:
    """A folder of clips, half of which don't show what sounds, and their references."""
    folder = root / "clips"
    folder.mkdir()
    rows = []
    for number in range(count):
        write_clip(folder, f"{number}", number)
        kind = KINDS[number % 4]
        rows.append(
            {
                "id": f"clips/{number}.wav",
                "references": [f"{kind} w8 w9 w10"],
                "sounding": [kind],
                "silent": [KINDS[(number + 1) % 4]],
                "unseen": [kind] if number >= count // 2 else [],
            }
        )
    references = root / "refs.jsonl"
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, references


def make_soundclip(model=None, **options):
    model = model or build_tiny_llava()
    encoder = TinyEncoder()
    torch.manual_seed(5)
    projector = Projector(16, 32, hidden=8, **Projector.labels(encoder.signature()))
    soundclip = patch(
        model,
        encoder,
        projector=projector,
        k=4,
        processor=build_tiny_processor(model),
        **options,
    )
    soundclip.prompt = "<image> w3 w4"
    return soundclip


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(soundclip, folder, references, out, **options):
    return measure_tradeoff(
        soundclip,
        read_clips([str(folder)]),
        references,
        out,
        **{
            "model": "tiny",
            "metrics": ["bleu"],
            "max_new_tokens": NEW,
            "batch_size": 3,
            "budgets": [2],
            "alphas": [0.5],
            **options,
        },
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("tradeoff")
    folder, references = write_clips(root)
    soundclip = make_soundclip()
    return soundclip, folder, references, root / "runs", measure(soundclip, folder, references, root / "runs")


def test_every_caption_is_what_the_handle_says(measured):
    soundclip, folder, _, out, result = measured
    assert not result.bad
    found = rows(out / "captions.jsonl")
    settings = plan_settings(k=4, patches=9, projected=True, budgets=[2], alphas=[0.5])
    assert len(found) == 8 * len(settings)
    by_name = {setting.name: setting for setting in settings}
    for setting in settings:
        own = [row for row in found if row["setting"] == setting.name]
        for row in own:
            made = row["alignment"], row["k"], row.get("control")
            assert made == (setting.alignment, setting.k, setting.control)
            assert (row.get("heard", row["clip"]) != row["clip"]) == (setting.control == "another")
            assert (out / row["image"]).samefile(folder.parent / Path(row["clip"]).with_suffix(".png"))
        soundclip.alignment, soundclip.k = setting.alignment, setting.k
        soundclip.control = None if setting.control == "another" else setting.control
        for at in range(0, len(own), 3):  # the run's batches: drawn controls may depend on a batch's rounding
            batch = own[at : at + 3]
            expected = soundclip.caption(
                [
                    load_audio(folder.parent / row.get("heard", row["clip"]), sampling_rate=RATE)
                    for row in batch
                ],
                picture=[load_frame((folder.parent / row["clip"]).with_suffix(".png")) for row in batch],
                sampling_rate=RATE,
                max_new_tokens=NEW,
                do_sample=False,
            )
            assert [row["caption"] for row in batch] == expected
    soundclip.alignment, soundclip.k, soundclip.control = "raw", 4, None
    texts = {name: [row["caption"] for row in found if row["setting"] == name] for name in by_name}
    assert texts["raw"] != texts["projected"] and texts["raw"] != texts["raw, noise"]
    assert texts["raw, zero"] == texts["projected, zero"]


def test_retrieval_is_of_the_pairs_only_and_by_the_models_own_tower(measured):
    soundclip, folder, _, out, _ = measured
    features = FeatureFolder(out / "features")
    assert features.ids == [f"clips/{number}.wav" for number in range(4)]
    audio, cls = features.rows(torch.arange(4))
    pictures = [load_frame(folder / f"{number}.png") for number in range(4)]
    pixels = soundclip.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = soundclip.host.tower_tokens(pixels)[:, 0]
        torch.testing.assert_close(cls, expected, rtol=2e-3, atol=2e-3)
        projected = soundclip.projector(audio)
    found = json.loads((out / "retrieval.json").read_text())
    own = retrieval(projected, cls)["A2V"].as_dict()
    assert found["figures"]["projected"]["A2V"]["mean_rank"]["value"] == pytest.approx(own["mean_rank"])
    assert set(found["figures"]) == {"raw", "projected", "alpha 0.5"} and found["clips"] == 4


def test_the_figures_and_the_page_are_there(measured):
    *_, out, result = measured
    captions = json.loads((out / "captions.json").read_text())
    naming = captions["metrics"]["unseen named"]["figures"]
    assert {figure["n"] for figure in naming.values()} == {4}
    assert "raw, noise" not in captions["metrics"]["played named"]["figures"]
    assert captions["options"]["raw, noise"]["control"] == "noise"
    page = (out / "report.html").read_text()
    assert "SoundCLIP on tiny" in page and "raw, noise" in page
    questions = [part["question"] for part in result.report["summary"]]
    assert "Does projecting cost quality?" in questions and "Does the sound help?" in questions
    assert len(list((out / "maps").iterdir())) == 6
    assert ["information" in note for note in result.notes] == [True]  # four pairs tell nothing
    assert not (out / "information.json").exists()


def test_again_it_makes_nothing_new_and_a_new_setting_only_itself(measured, monkeypatch):
    soundclip, folder, references, out, _ = measured
    before = (out / "captions.jsonl").read_bytes()
    asked = []
    caption = soundclip.caption

    def count(sounds, **options):
        asked.extend(sounds)
        return caption(sounds, **options)

    monkeypatch.setattr(soundclip, "caption", count)
    measure(soundclip, folder, references, out)
    assert not asked and (out / "captions.jsonl").read_bytes() == before
    measure(soundclip, folder, references, out, alphas=[0.25, 0.5])
    assert len(asked) == 8 and (out / "captions.jsonl").read_bytes().startswith(before)
    assert {row["setting"] for row in rows(out / "captions.jsonl")[-8:]} == {"alpha 0.25"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "k 4, not 3"),
        ({"tokens": "drop"}, "tokens 'zero', not 'drop'"),
        ({"prompt": "<image> w9"}, "prompt '<image> w3 w4', not '<image> w9'"),
    ],
)
def test_a_folder_of_another_run_is_refused(measured, change, message):
    soundclip, folder, references, out, _ = measured
    before = {name: getattr(soundclip, name) for name in change}
    try:
        for name, value in change.items():
            setattr(soundclip, name, value)
        with pytest.raises(ValueError, match=f"holds a run with {message}: give another folder"):
            measure(soundclip, folder, references, out)
    finally:
        for name, value in before.items():
            setattr(soundclip, name, value)


def test_other_weights_of_a_projector_are_another_run(measured):
    soundclip, folder, references, out, _ = measured
    with torch.no_grad():
        weight = next(soundclip.projector.parameters())
        weight += 1
        with pytest.raises(ValueError, match="holds a run with projector '"):
            measure(soundclip, folder, references, out)
        weight -= 1


def test_clips_without_references_are_named_before_the_work(tmp_path):
    folder, references = write_clips(tmp_path)
    write_clip(folder, "9", 9)
    with pytest.raises(
        ValueError, match=r"1 of 9 clips have no references in .*refs.jsonl: 'clips/9.wav'; it "
    ):
        measure(make_soundclip(), folder, references, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_bad_clip_is_told_and_the_others_are_measured(tmp_path):
    folder, references = write_clips(tmp_path)
    (folder / "1.png").write_bytes(b"no picture")  # one of the pairs
    (folder / "6.wav").write_bytes(b"no sound")  # one of the others
    result = measure(make_soundclip(), folder, references, tmp_path / "runs", budgets=[], alphas=[])
    assert set(result.bad) == {"clips/1.wav", "clips/6.wav"}
    found = rows(tmp_path / "runs" / "captions.jsonl")
    assert {row["clip"] for row in found} == {f"clips/{number}.wav" for number in (0, 2, 3, 4, 5, 7)}


def test_parts_of_films_have_their_own_pictures(tmp_path):
    from llava_soundclip.demo.kinds import make_clip

    make_clip(tmp_path / "film.mp4", picture="bell", sound="rain", seconds=2)
    table = tmp_path / "table.jsonl"
    spans = [(0, 1), (1, 2)]
    table.write_text(
        "".join(
            json.dumps(
                {"id": f"part {start}", "path": "film.mp4", "start": start, "end": end, "references": ["w4"]}
            )
            + "\n"
            for start, end in spans
        )
    )
    measure(make_soundclip(), table, table, tmp_path / "runs", budgets=[], alphas=[])
    found = rows(tmp_path / "runs" / "captions.jsonl")
    assert len({row["image"] for row in found}) == 2
    for row in found:
        assert load_frame(tmp_path / "runs" / row["image"]).size == (288, 288)
    assert len({row["heard"] for row in found if "heard" in row}) == 2


def test_without_a_projector_all_is_raw(tmp_path):
    folder, references = write_clips(tmp_path, 4)
    model = build_tiny_llava()
    soundclip = patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))
    soundclip.prompt = "<image> w3"
    measure(soundclip, folder, references, tmp_path / "runs", alphas=None)
    settings = {row["setting"] for row in rows(tmp_path / "runs" / "captions.jsonl")}
    assert settings == {
        "raw",
        "raw, another",
        "raw, noise",
        "raw, zero",
        "raw, random",
        "raw, k=2",
        "raw, k=2, random",
    }
    assert set(json.loads((tmp_path / "runs" / "retrieval.json").read_text())["figures"]) == {"raw"}


def test_clips_that_the_projector_was_trained_on_are_left_out(tmp_path):
    from llava_soundclip.features.extract import extract_features
    from llava_soundclip.training.fit import Recipe, train

    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(12):
        write_clip(folder, f"{number:02}", number)
    references = tmp_path / "refs.jsonl"
    ids = [f"clips/{number:02}.wav" for number in range(12)]
    references.write_text("".join(json.dumps({"id": id, "references": ["w4"]}) + "\n" for id in ids))
    model = build_tiny_llava()
    hearing = TinyEncoder()
    alone = patch(model, hearing, k=4, processor=build_tiny_processor(model))
    extract_features(read_clips([str(folder)]), hearing, tower_of(alone), tmp_path / "features", workers=0)
    train(
        tmp_path / "features",
        tmp_path / "projector",
        Recipe(hidden=8, epochs=1, batch_size=4, validation=0.3, seed=1),
    )
    soundclip = patch(
        model, hearing, projector=tmp_path / "projector", k=4, processor=build_tiny_processor(model)
    )
    soundclip.prompt = "<image> w3"
    result = measure(
        soundclip,
        folder,
        references,
        tmp_path / "runs",
        trained_in=tmp_path / "projector",
        budgets=[],
        alphas=[],
    )
    figures = json.loads((tmp_path / "runs" / "retrieval.json").read_text())
    captioned = {row["clip"] for row in rows(tmp_path / "runs" / "captions.jsonl")}
    assert figures["rows"] == "validation" and 0 < figures["clips"] == len(captioned) < 6
    assert not any("too good" in note for note in result.notes)
    (folder / "00.png").unlink()  # now it is another folder than the one that was trained on
    (folder / "00.wav").unlink()
    result = measure(
        soundclip,
        folder,
        references,
        tmp_path / "other",
        trained_in=tmp_path / "projector",
        budgets=[],
        alphas=[],
    )
    assert [note for note in result.notes if "was trained on other features" in note]


def test_a_picture_in_tiles_is_seen_whole():
    model = build_tiny_llava_next()
    soundclip = patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))
    tower = tower_of(soundclip)
    pictures = [
        Image.effect_noise((60, 40), 90).convert("RGB"),
        Image.effect_noise((40, 40), 90).convert("RGB"),
    ]
    pixels = tower.processor(pictures, return_tensors="np")["pixel_values"]
    assert pixels.shape == (2, 3, 30, 30)
    for picture, own in zip(pictures, tower.tokens(torch.from_numpy(pixels)), strict=True):
        tiles = soundclip.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0, :1]
        torch.testing.assert_close(own[None], soundclip.host.tower_tokens(tiles).float())
    assert (tower.name, tower.layer) == (soundclip.host.tower, soundclip.host.tower_layer)


def test_a_handle_is_as_it_was_after_a_setting():
    soundclip = make_soundclip()
    soundclip.alignment = 0.25
    with pytest.raises(RuntimeError, match="broken"), Setting("raw", 2, "noise", "x").applied_to(soundclip):
        assert (soundclip.alignment, soundclip.k, soundclip.control) == ("raw", 2, "noise")
        raise RuntimeError("broken")
    assert (soundclip.alignment, soundclip.k, soundclip.control) == (0.25, 4, None)


CHILD = """
import signal, sys, time
from pathlib import Path
from tests.evaluation.tradeoff import test_run as t
signal.signal(signal.SIGINT, signal.default_int_handler)
soundclip = t.make_soundclip()
caption = soundclip.caption
soundclip.caption = lambda *a, **k: (time.sleep(0.05), caption(*a, **k))[1]
root = Path(sys.argv[1])
if __name__ == "__main__":
    t.measure(soundclip, root / "clips", root / "refs.jsonl", root / "runs", budgets=[], alphas=[])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on(tmp_path, how):
    folder, references = write_clips(tmp_path)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    out = tmp_path / "runs" / "captions.jsonl"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": str(root)}
    )
    with process:
        while process.poll() is None and (not out.exists() or len(rows(out)) < 20):
            time.sleep(0.01)
        process.send_signal(how)
    assert process.returncode != 0
    kept = out.read_bytes().rpartition(b"\n")[0]
    measure(make_soundclip(), folder, references, tmp_path / "runs", budgets=[], alphas=[])
    assert out.read_bytes().startswith(kept)
    measure(make_soundclip(), folder, references, tmp_path / "whole", budgets=[], alphas=[])
    assert sorted(map(json.dumps, rows(out))) == sorted(
        map(json.dumps, rows(tmp_path / "whole" / "captions.jsonl"))
    )
