"""From a film, or a sound and a picture, to a caption: the same as by hand with the stock processor."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_soundclip import MediaError, SoundCLIP, patch
from llava_soundclip.media import load_audio, load_frame
from tests.conftest import TinyEncoder, build_tiny_llava, build_tiny_llava_next, build_tiny_processor
from tests.hosts.reference import algorithm_1, pad_or_cut
from tests.media.making import write_film

RATE = 16_000


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mkv")


@pytest.fixture
def soundclip() -> SoundCLIP:
    model = build_tiny_llava()
    return patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))


def by_hand(soundclip: SoundCLIP, picture: Image.Image, sound: Any, prompt: str) -> str:
    inputs = soundclip.processor(images=picture, text=prompt, return_tensors="pt")
    with soundclip.audio(sound, sampling_rate=RATE):
        output = soundclip.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return soundclip.processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def test_a_film_is_captioned_as_by_hand(soundclip: SoundCLIP, film: Path) -> None:
    prompt = "w5 <image> w6 w7"
    for time in ("middle", "first", 0.2):
        expected = by_hand(
            soundclip, load_frame(film, time=time), load_audio(film, sampling_rate=RATE), prompt
        )
        assert soundclip.caption(film, prompt, frame=time, max_new_tokens=8, do_sample=False) == expected
    assert expected


def test_lists_in_lists_out(soundclip: SoundCLIP, film: Path) -> None:
    pictures = [Image.new("RGB", (40, 50), colour) for colour in ("green", "white")]
    sounds = [np.sin(np.arange(4000, dtype=np.float32) * f) for f in (0.1, 0.7)]
    alone = [
        soundclip.caption(sound, "w8 <image>", picture, sampling_rate=RATE, max_new_tokens=8, do_sample=False)
        for sound, picture in zip(sounds, pictures, strict=True)
    ]
    options = {"sampling_rate": RATE, "max_new_tokens": 8, "do_sample": False}
    assert soundclip.caption(sounds, "w8 <image>", pictures, **options) == alone
    assert len(soundclip.caption(sounds, "w8 <image>", pictures[0], **options)) == 2
    with pytest.raises(ValueError, match="1 pictures for 2 sounds"):
        soundclip.caption(sounds, "w8 <image>", pictures[:1], **options)


def test_several_sequences_per_source(soundclip: SoundCLIP) -> None:
    picture = Image.new("RGB", (40, 50), "green")
    sounds = [np.sin(np.arange(4000, dtype=np.float32) * f) for f in (0.1, 0.7)]
    options = {"sampling_rate": RATE, "max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 3}
    alone = [soundclip.caption(sound, "w8 <image>", picture, **options) for sound in sounds]
    assert [len(captions) for captions in alone] == [3, 3] and len(set(alone[0])) == 3
    assert soundclip.caption(sounds, "w8 <image>", picture, **options) == alone
    first = soundclip.caption(sounds[0], "w8 <image>", picture, **{**options, "num_return_sequences": 1})
    assert first == alone[0][0]


@pytest.mark.parametrize("template_writes_it", [True, False])
def test_one_token_begins_a_text(soundclip: SoundCLIP, template_writes_it: bool) -> None:
    """As `apply_chat_template(tokenize=True)` has it: the template's, or else the tokenizer's."""
    from tokenizers.processors import TemplateProcessing

    processor, picture = soundclip.processor, Image.new("RGB", (40, 50), "green")
    begin = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    processor.tokenizer.backend_tokenizer.post_processor = begin
    processor.chat_template = (
        ("{{ bos_token }} " if template_writes_it else "")
        + "{% for m in messages %}{% for c in m['content'] %}"
        + "{{ '<image> ' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}"
    )
    talk = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "w5"}]}
    ]
    stock = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
    seen: list[list[int]] = []
    soundclip.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    soundclip.caption(np.zeros(4000, np.float32), "w5", picture, sampling_rate=RATE, max_new_tokens=1)
    assert seen[0].count(1) == 1 and seen[0][0] == 1
    if template_writes_it:
        assert seen[0] == stock["input_ids"][0].tolist()


@pytest.mark.parametrize("tokens", ["zero", "drop"])
def test_a_batch_of_pictures_of_unequal_sizes(tokens: str) -> None:
    """LLaVA-NeXT writes more tokens for some sizes: the shorter rows are padded, and each caption stays its own."""
    model = build_tiny_llava_next()
    soundclip = patch(model, TinyEncoder(), k=4, tokens=tokens, processor=build_tiny_processor(model))
    pictures = [Image.new("RGB", size, "teal") for size in ((60, 40), (15, 90), (60, 30))]
    sounds = [np.sin(np.arange(4000, dtype=np.float32) * f) for f in (0.1, 0.7, 0.3)]
    prompt = "w8 <image> w9"
    lengths = [soundclip.processor(images=picture, text=prompt)["input_ids"] for picture in pictures]
    assert len({len(row) for [row] in lengths}) == 3 and soundclip.processor.tokenizer.padding_side == "right"
    options = {"sampling_rate": RATE, "max_new_tokens": 8, "do_sample": False}
    alone = [
        soundclip.caption(sound, prompt, picture, **options)
        for sound, picture in zip(sounds, pictures, strict=True)
    ]
    assert len(set(alone)) == 3
    assert soundclip.caption(sounds, prompt, pictures, **options) == alone


def test_the_chat_template_is_used_if_there_is_one(soundclip: SoundCLIP, film: Path) -> None:
    plain = soundclip.caption(film, "w9 w10", max_new_tokens=8, do_sample=False)
    frame, sound = load_frame(film), load_audio(film, sampling_rate=RATE)
    assert plain == by_hand(soundclip, frame, sound, "USER: <image>\nw9 w10 ASSISTANT:")
    soundclip.processor.chat_template = (
        "{% for message in messages %}w11 {% for part in message['content'] %}"
        "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %} w12"
    )
    assert soundclip.caption(film, "w9 w10", max_new_tokens=8, do_sample=False) == by_hand(
        soundclip, frame, sound, "w11 <image> w9 w10 w12"
    )


def test_trace_shows_what_algorithm_1_keeps(soundclip: SoundCLIP, film: Path) -> None:
    trace = soundclip.trace(film, frame="first")
    pixel_values = soundclip.processor.image_processor(load_frame(film, time="first"), return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        tokens = soundclip.model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[
            -2
        ][0]
    sound = TinyEncoder().embed([load_audio(film, sampling_rate=RATE)], RATE)[0]
    _, kept = algorithm_1(tokens, pad_or_cut(sound, tokens.shape[1]), 4)
    assert np.flatnonzero(trace.kept).tolist() == kept
    assert trace.kept.shape == trace.similarity.shape == (3, 3)
    assert trace.similarity.reshape(-1)[kept].min() >= np.delete(trace.similarity.reshape(-1), kept).max()
    assert (
        trace.frame.size == (30, 30) and trace.frame.getpixel((15, 15))[0] > 150
    )  # the red frame, unnormalised
    assert (trace.k, trace.encoder) == (4, "tiny")


def test_mistakes(soundclip: SoundCLIP, film: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give picture="):
        soundclip.caption(np.zeros(100, np.float32), sampling_rate=RATE)
    (tmp_path / "notes.mp4").write_text("not a film")
    with pytest.raises(MediaError, match=r"notes\.mp4"):
        soundclip.caption(tmp_path / "notes.mp4")
    with pytest.raises(MediaError, match=r"nowhere\.mp4: No such file or directory$"):
        soundclip.caption("nowhere.mp4")
    with wave.open(str(tmp_path / "alone.wav"), "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(bytes(2000))
    with pytest.raises(MediaError, match=r"alone\.wav.*a sound alone needs picture="):
        soundclip.caption(tmp_path / "alone.wav")
    soundclip.processor = None
    with pytest.raises(ValueError, match="pass processor= to patch"):
        soundclip.caption(film)


def test_handle_and_trace_print_in_one_line(soundclip: SoundCLIP, film: Path) -> None:
    assert repr(soundclip) == (
        "SoundCLIP(LlavaForConditionalGeneration, encoder='tiny', alignment='raw', k=4, tokens='zero', "
        "projector: none)"
    )
    trace = soundclip.trace(film)
    similarity = trace.similarity.reshape(-1)
    assert repr(trace) == (
        f"Trace(encoder='tiny', k=4 of 3x3 patches, similarity {min(similarity):.3f} to {max(similarity):.3f})"
    )
    soundclip.unpatch()
    assert repr(soundclip).endswith("projector: none, unpatched)")
