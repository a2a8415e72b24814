"""The miniature hears: the method on real parts, through nothing but the public names."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_soundclip import load_demo
from llava_soundclip.demo import PROMPT, K
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_clip, make_scene, synthesise
from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, WHISPER, is_packaged
from llava_soundclip.media import load_frame
from tests.encoders.test_registry import CHECKPOINTS

RATE = 16_000
MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"
GREEDY = {"max_new_tokens": 24, "do_sample": False}


pytestmark = pytest.mark.skipif(not all(map(is_packaged, (WHISPER, SMOLLM2))), reason=f"needs {PIP_LINE}")


@pytest.fixture(scope="module")
def demo():
    soundclip = load_demo()
    yield soundclip
    soundclip.unpatch()


@pytest.fixture(scope="module")
def stock():
    return load_demo(patched=False)


def heard(caption):
    """What a caption says it hears."""
    return " ".join(re.findall(r"I hear ([^.]*)", caption))


def inputs_for(processor, picture, prompt=PROMPT):
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[picture], text=[text], return_tensors="pt")


def say(model, processor, picture):
    """Caption without a sound."""
    inputs = inputs_for(processor, picture)
    output = model.generate(**inputs, **GREEDY)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def captions_of(demo, played, seed=11):
    """Caption each drawn kind's sound, `played` for each, with a picture of each other kind."""
    rng = np.random.default_rng(seed)
    pairs = [(kind, shown) for kind in DRAWN_KINDS for shown in DRAWN_KINDS if shown != kind]
    captions = demo.caption(
        [synthesise(played[kind], 3, RATE, rng) for kind, _ in pairs],
        picture=[make_scene(shown, 192, rng) for _, shown in pairs],
        sampling_rate=RATE,
        **GREEDY,
    )
    return list(zip(captions, pairs, strict=True))


AS_THEY_ARE = {kind: kind for kind in DRAWN_KINDS}
SHUFFLED = dict(zip(DRAWN_KINDS, (*DRAWN_KINDS[1:], DRAWN_KINDS[0]), strict=True))


def right(rows):
    """In how many captions what should sound is heard and what is silent isn't."""
    return sum(kind in heard(caption) and shown not in heard(caption) for caption, (kind, shown) in rows)


def test_what_sounds_is_named_and_not_what_is_silent(demo):
    rows = captions_of(demo, AS_THEY_ARE)
    assert right(rows) >= len(rows) - 1, rows
    shuffled = captions_of(demo, SHUFFLED)  # the control: the same check fails
    assert right(shuffled) <= 1, shuffled


def heard_over_one_picture(demo, played):
    """What is heard when each drawn kind's sound, `played` for each, goes with the same picture."""
    picture = make_scene(["bell", "whistle"], 192, np.random.default_rng(3))
    waves = {kind: synthesise(played[kind], 3, RATE, np.random.default_rng(4)) for kind in DRAWN_KINDS}
    return {
        kind: heard(demo.caption(wave, picture=picture, sampling_rate=RATE, **GREEDY))
        for kind, wave in waves.items()
    }


def test_another_sound_changes_the_caption_of_the_same_picture(demo):
    names = {"alarm clock": "an alarm clock", "bell": "a bell", "whistle": "a whistle", "rain": "rain"}
    assert heard_over_one_picture(demo, AS_THEY_ARE) == names
    assert heard_over_one_picture(demo, SHUFFLED) == {kind: names[SHUFFLED[kind]] for kind in names}


def test_a_film_is_captioned(demo, tmp_path):
    film = make_clip(tmp_path / "clip.mp4", picture="rain", sound="whistle")
    caption = demo.caption(film, **GREEDY)
    assert heard(caption) == "a whistle"


def test_without_a_sound_the_patched_model_is_stock(demo, stock):
    model, processor = stock
    for kind in DRAWN_KINDS:
        picture = make_scene(kind, 192, np.random.default_rng(6))
        inputs = inputs_for(processor, picture)
        with torch.no_grad():
            assert torch.equal(demo.model(**inputs).logits, model(**inputs).logits)
        caption = say(demo.model, processor, picture)
        assert caption == say(model, processor, picture)
        assert kind in caption and "hear" not in caption


def test_after_unpatch_the_model_is_stock(stock):
    _, processor = stock
    picture = make_scene("bell", 192, np.random.default_rng(7))
    wave = synthesise("whistle", 3, RATE, np.random.default_rng(7))
    soundclip = load_demo()
    assert "hear" in soundclip.caption(wave, picture=picture, sampling_rate=RATE, **GREEDY)
    soundclip.unpatch()
    inputs = inputs_for(processor, picture)
    with torch.no_grad():
        assert torch.equal(soundclip.model(**inputs).logits, stock[0](**inputs).logits)


def test_the_map_lights_the_thing_that_sounds(demo):
    """The patches that a bell's sound keeps lie on the bell more often than chance."""
    picture = make_scene(["bell", "rain"], 192, np.random.default_rng(8))
    traces = {
        kind: demo.trace(synthesise(kind, 3, RATE, np.random.default_rng(9)), picture, sampling_rate=RATE)
        for kind in ("bell", "rain")
    }
    difference = traces["bell"].similarity - traces["rain"].similarity
    assert traces["bell"].kept.sum() == demo.k
    left, right = difference[:, :3].mean(), difference[:, 3:].mean()
    assert abs(left - right) > 0.05  # each sound is nearer to its own half of the picture


def test_patch_options_reach_patch():
    soundclip = load_demo(k=9, tokens="drop")
    assert (soundclip.k, soundclip.tokens, soundclip.prompt) == (9, "drop", PROMPT)
    soundclip.unpatch()


@pytest.fixture(scope="module")
def stock_demo():
    """A LLaVA whose mm_projector was trained as LLaVA-1.5's is: it never saw a CLS token."""
    soundclip = load_demo(mm_projector="stock", tokens="drop")
    yield soundclip
    soundclip.unpatch()


def test_a_stock_mm_projector_with_all_patches_is_deaf(stock_demo, demo):
    """The card's finding: it names what it sees whatever sounds, where the prepared one names the sound."""
    rng = np.random.default_rng(15)
    pairs = [(sound, shown) for sound in DRAWN_KINDS for shown in DRAWN_KINDS if sound != shown]
    waves = [synthesise(sound, 3, RATE, rng) for sound, _ in pairs]
    pictures = [make_scene(shown, 192, rng) for _, shown in pairs]

    def named(soundclip):
        captions = soundclip.caption(waves, picture=pictures, sampling_rate=RATE, **GREEDY)
        told = [(sound in text, shown in text) for text, (sound, shown) in zip(captions, pairs, strict=True)]
        return np.sum(told, axis=0).tolist()

    stock_demo.tokens, stock_demo.k = "zero", 36
    heard, seen = named(stock_demo)
    assert heard <= 1 and seen >= len(pairs) - 3, (heard, seen)
    demo.k = 36
    heard, _ = named(demo)
    demo.k = K
    assert heard >= len(pairs) - 3, heard


def test_a_stock_mm_projector_sees(stock_demo):
    for kind in DRAWN_KINDS:
        picture = make_scene(kind, 192, np.random.default_rng(6))
        inputs = inputs_for(stock_demo.processor, picture, stock_demo.prompt)
        output = stock_demo.model.generate(**inputs, **GREEDY)
        caption = stock_demo.processor.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert kind in caption and "hear" not in caption


def test_the_two_mm_projectors_share_all_else(stock_demo, stock):
    ours, theirs = (dict(model.named_parameters()) for model in (stock_demo.model, stock[0]))
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ == {name for name in ours if "multi_modal_projector" in name}


def test_another_encoder_is_raw():
    soundclip = load_demo(encoder="whisper")
    assert (soundclip.alignment, soundclip.projector, soundclip.encoder.window) == ("raw", None, "clip")
    soundclip.unpatch()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_encoder_is_heard_raw(tmp_path, name):
    """Its weights are random here, so only that its vector, and nothing else, is in the slot."""
    soundclip = load_demo(
        encoder=name, checkpoint=CHECKPOINTS[name](tmp_path), alignment="raw", projector=None
    )
    clip = make_clip(tmp_path / "bell.mp4", picture="bell", sound="bell")
    try:
        assert soundclip.caption(clip, **GREEDY)
        trace = soundclip.trace(clip)
        vector = soundclip.embed(clip)
        pixels = soundclip.processor.image_processor(load_frame(clip), return_tensors="pt")["pixel_values"]
        tokens = soundclip.host.tower_tokens(pixels)[0].detach()
        f_a = torch.nn.functional.pad(vector[0, :384], (0, max(384 - soundclip.encoder.dim, 0)))
        cosine = torch.nn.functional.cosine_similarity(tokens[1:], f_a[None])
        assert trace.similarity.ravel() == pytest.approx(cosine.numpy(), abs=1e-5)
        kept = set(cosine.argsort(descending=True)[:K].tolist())
        assert set(np.flatnonzero(trace.kept)) == kept
    finally:
        soundclip.unpatch()


def test_the_tour_runs_to_its_end(tmp_path, monkeypatch, capsys):
    tour = Path(__file__).resolve().parents[2] / "examples" / "miniature_tour.py"
    monkeypatch.setattr(sys, "argv", [str(tour), str(tmp_path)])
    soundclip = runpy.run_path(str(tour))["soundclip"]
    assert not soundclip.is_installed
    said = capsys.readouterr().out
    assert "no sound:" in said and "whistle, drop:    I hear a whistle" in said
    assert {path.name for path in tmp_path.iterdir()} == {"bell.png", "whistle.png", "rain.png"}


FAR = {
    "pairs/dog_audio.wav": "dog",
    "esc50/2-116400-A-0.wav": "dog",
    "pairs/bird_audio.wav": "bird",
    "esc50/1-34495-A-14.wav": "bird",
}


def heard_far(demo, paths):
    """Of four far recordings, played from `paths`, with four pictures each: how many are named."""
    pictures = [make_scene(kind, 192, np.random.default_rng(16)) for kind in DRAWN_KINDS]
    right = 0
    for name, path in paths.items():
        captions = demo.caption([MEDIA / path] * len(pictures), picture=pictures, **GREEDY)
        right += sum(f"a {FAR[name]}" in heard(caption) for caption in captions)
    return right


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason="needs ../shared/media")
def test_real_recordings_that_were_never_trained_on_are_heard(demo):
    turned = dict(zip(FAR, [*FAR][2:] + [*FAR][:2], strict=True))
    assert heard_far(demo, {name: name for name in FAR}) >= 10  # of 16
    assert heard_far(demo, turned) <= 3  # dogs played for birds and birds for dogs


def test_words_are_the_same_whichever_transformers_reads_them(demo):
    """transformers 4 reads a GGUF's tokenizer in another way: with a token in front, and other spaces."""
    ids = demo.processor.tokenizer("What do you hear, 12 cats?")["input_ids"]
    assert ids == [1780, 536, 346, 4875, 28, 216, 33, 34, 7680, 47]
    assert demo.processor.tokenizer.decode(ids) == "What do you hear, 12 cats?"
    special = demo.processor.tokenizer
    assert (special.bos_token, special.eos_token, special.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
