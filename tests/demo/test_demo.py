"""The miniature hears: the method on real parts, through nothing but the public names."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_soundclip import load_demo
from llava_soundclip.demo import PROMPT
from llava_soundclip.demo.assemble import PIP_LINE, SMOLLM2_FILE, WHISPER_FILE
from llava_soundclip.demo.kinds import DRAWN_KINDS, make_clip, make_scene, synthesise

RATE = 16_000
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "media" / "pairs" / "dog_audio.wav"
GREEDY = {"max_new_tokens": 24, "do_sample": False}


def is_installed(name):
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not all(is_installed(name) for name, *_ in (SMOLLM2_FILE, WHISPER_FILE)), reason=f"needs {PIP_LINE}"
)


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


def inputs_for(processor, picture):
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[picture], text=[text], return_tensors="pt")


def say(model, processor, picture):
    """Caption without a sound."""
    inputs = inputs_for(processor, picture)
    output = model.generate(**inputs, **GREEDY)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("sound", DRAWN_KINDS)
def test_what_sounds_is_named_and_not_what_is_silent(demo, sound):
    rng = np.random.default_rng(11)
    others = [kind for kind in DRAWN_KINDS if kind != sound]
    captions = demo.caption(
        [synthesise(sound, 3, RATE, rng) for _ in others],
        picture=[make_scene(other, 192, rng) for other in others],
        sampling_rate=RATE,
        **GREEDY,
    )
    for caption, other in zip(captions, others, strict=True):
        assert sound in heard(caption), caption
        assert other not in heard(caption), caption


def test_another_sound_changes_the_caption_of_the_same_picture(demo):
    picture = make_scene(["bell", "whistle"], 192, np.random.default_rng(3))
    captions = {
        kind: demo.caption(
            synthesise(kind, 3, RATE, np.random.default_rng(4)), picture=picture, sampling_rate=RATE, **GREEDY
        )
        for kind in DRAWN_KINDS
    }
    assert {kind: heard(caption) for kind, caption in captions.items()} == {
        "alarm clock": "an alarm clock",
        "bell": "a bell",
        "whistle": "a whistle",
        "rain": "rain",
    }


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


@pytest.mark.slow
@pytest.mark.skipif(not RECORDING.exists(), reason="needs ../shared/media/pairs/dog_audio.wav")
def test_a_real_dog_that_was_never_trained_on_is_heard(demo):
    pictures = [make_scene(kind, 192, np.random.default_rng(seed)) for kind in DRAWN_KINDS for seed in (0, 1)]
    captions = demo.caption([RECORDING] * len(pictures), picture=pictures, **GREEDY)
    told = [re.fullmatch("a dog( barking)?", heard(caption)) is not None for caption in captions]
    assert sum(told) >= 0.6 * len(told), captions
