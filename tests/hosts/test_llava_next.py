"""LLaVA-NeXT's own: pictures of any size through its stock processor, and the stock layout kept."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_soundclip import patch
from tests.conftest import IMAGE_TOKEN, PATCHES, TinyEncoder, build_tiny_llava_next, build_tiny_processor
from tests.encoders import fake_whisper
from tests.hosts import reference
from tests.hosts.families import FAMILIES, NEW, RATE, K, make_inputs, make_sounds
from tests.media.making import write_film

NEXT = FAMILIES["llava_next-vicuna"]
SIZES = [(60, 40), (15, 90), (60, 30), (33, 35), (200, 17), (7, 300), (64, 64)]  # (width, height)


@pytest.fixture
def model() -> Any:
    return build_tiny_llava_next()


def make_picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("tokens", ["zero", "drop"])
@torch.no_grad()
def test_pictures_of_any_size_through_the_stock_processor(model: Any, tokens: str) -> None:
    sounds = make_sounds(len(SIZES))
    inputs = build_tiny_processor(model)(
        images=[make_picture(size) for size in SIZES],
        text=["w4 <image> w5 <image><image>", "<image> w6 w7", "w8 w9 w10 <image> <image> <image> w11"],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    visual = NEXT.hear(model, inputs, TinyEncoder().embed(sounds, RATE), K, tokens)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    length = inputs["input_ids"].shape[1]
    for row, images in enumerate([range(3), range(3, 4), range(4, 7)]):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        # Placeholders of one picture at a time: what the stock model itself makes of it.
        stock = [
            len(features(model, inputs["pixel_values"][i : i + 1], inputs["image_sizes"][i : i + 1])[0])
            for i in images
        ]
        assert sum(stock) == ids.count(IMAGE_TOKEN)
        prompt = reference.prompt_embeddings(model, ids, [visual[i] for i in images], stock)
        assert output[row, length:].tolist() == reference.greedy(model, prompt, NEW)


def features(model: Any, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> Any:
    output = model.model.get_image_features(pixel_values, image_sizes)
    return getattr(output, "pooler_output", output)


@torch.no_grad()
def test_without_its_slots_an_image_with_all_patches_is_stock(model: Any) -> None:
    """The layout isn't only the reference's: rows, columns and newlines are those of the stock model."""
    inputs = make_inputs([3], family=NEXT)
    stock = features(model, inputs["pixel_values"], inputs["image_sizes"])
    soundclip = patch(model, TinyEncoder(), k=PATCHES)
    heard = soundclip.visual_tokens(
        inputs["pixel_values"], make_sounds(3), image_sizes=inputs["image_sizes"], sampling_rate=RATE
    )
    for image, want, tiles in zip(heard, stock, (5, 4, 3), strict=True):
        rows = image[1 + PATCHES + tiles - 1 :]
        torch.testing.assert_close(torch.cat([image[1 : 1 + PATCHES], rows]), want)


@torch.no_grad()
def test_a_caption_and_the_map_of_its_base_tile(model: Any) -> None:
    processor = build_tiny_processor(model)
    soundclip = patch(model, TinyEncoder(), k=K, processor=processor)
    picture, [sound] = make_picture((60, 40)), make_sounds(1)
    assert soundclip.caption(sound, "w4 <image> w5", picture, sampling_rate=RATE, max_new_tokens=4)
    trace = soundclip.trace(sound, picture, sampling_rate=RATE)
    base = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0, :1]
    states = model.model.vision_tower(base, output_hidden_states=True).hidden_states[-2][0]
    f_a = reference.pad_or_cut(TinyEncoder().embed([sound], RATE)[0], states.shape[-1])
    assert np.flatnonzero(trace.kept).tolist() == reference.algorithm_1(states, f_a, K)[1]
    assert trace.frame.size == (30, 30)


def test_the_full_strategy_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match='"full".*transformers#32395.*set it to "default"'):
        patch(build_tiny_llava_next(strategy="full"), TinyEncoder())
    inputs = make_inputs([1], family=NEXT)
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=1)):
            with pytest.raises(ValueError, match='set it to "default"'):
                call(**inputs, vision_feature_select_strategy="full")


def test_image_sizes_are_asked_for(model: Any) -> None:
    inputs = make_inputs([1], family=NEXT)
    del inputs["image_sizes"]
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=1)):
            with pytest.raises(ValueError, match="without image_sizes"):
                call(**inputs)
    with pytest.raises(ValueError, match="without image_sizes"):
        soundclip.visual_tokens(inputs["pixel_values"], make_sounds(1), sampling_rate=RATE)


@pytest.mark.usefixtures("narrow_4bit")
def test_the_example_in_4_bits(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tiny random weights in a folder, with the lines that a GPU user needs."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    folder, film = tmp_path / "llava-next-tiny", write_film(tmp_path / "bark.mp4")
    model.save_pretrained(folder)
    build_tiny_processor(model).save_pretrained(folder)
    whisper = fake_whisper.write_openai(tmp_path / "whisper.pt", fake_whisper.weights())
    command = f"llava_next_4bit.py {film} --model {folder} --checkpoint {whisper} --k 4 --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    result = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "llava_next_4bit.py"))
    assert result["model"].is_loaded_in_4bit
    assert result["soundclip"].caption(film) in capsys.readouterr().out
