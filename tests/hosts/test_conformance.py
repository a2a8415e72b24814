"""Every family through what users already do: stock without a sound, and with one as put together by hand."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_soundclip import patch
from tests.conftest import IMAGE_TOKEN, TinyEncoder
from tests.hosts import reference
from tests.hosts.families import (
    NEW,
    RATE,
    Family,
    K,
    expected_places,
    expected_rows,
    make_inputs,
    make_sounds,
)
from tests.test_patching import generate, scores, snapshot


def test_without_a_sound_and_after_unpatch_nothing_differs(family: Family, model: Any, tokens: str) -> None:
    inputs = make_inputs([1, 2], family=family)
    stock, words = scores(model, inputs), generate(model, inputs)
    before = snapshot(model)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        heard, heard_words = scores(model, inputs), generate(model, inputs)
    assert heard_words != words
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        assert torch.equal(scores(model, inputs), heard)
    soundclip.unpatch()
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    assert snapshot(model) == before


@pytest.mark.parametrize("images", [[1], [2], [1, 2], [3, 1, 2]], ids=str)
@torch.no_grad()
def test_generate_equals_the_model_put_together_by_hand(
    family: Family, model: Any, tokens: str, images: list[int]
) -> None:
    inputs, sounds = make_inputs(images, family=family), make_sounds(sum(images))
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    expected = [reference.greedy(model, row, NEW) for row in rows]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :length], inputs["input_ids"])
    assert output[:, length:].tolist() == expected


@torch.no_grad()
def test_forward_equals_the_model_put_together_by_hand(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1, 2], family=family), make_sounds(3)
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    expected = [reference.logits(model, row) for row in rows]
    places = expected_places(model, inputs, sounds, K, tokens, family=family)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        outputs = [model(**inputs).logits, model.forward(**inputs).logits]
    for output in outputs:
        assert output.shape[:2] == inputs["input_ids"].shape
        for row, want, read in zip(output, expected, places, strict=True):
            torch.testing.assert_close(row[-len(read) :], want[read], rtol=1e-4, atol=1e-4)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        raw = model(**inputs).logits
    assert raw.shape[1] == max(map(len, expected))
    for row, want in zip(raw, expected, strict=True):
        torch.testing.assert_close(row[-len(want) :], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 9])
@torch.no_grad()
def test_the_smallest_and_the_largest_k(family: Family, model: Any, tokens: str, k: int) -> None:
    inputs, sounds = make_inputs([2], family=family), make_sounds(2)
    [expected] = expected_rows(model, inputs, sounds, k, tokens, family=family)
    soundclip = patch(model, TinyEncoder(), k=k, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**inputs).logits[0]
    torch.testing.assert_close(output, reference.logits(model, expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"use_cache": False},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True, "output_scores": True},
        {"repetition_penalty": 1.3},
    ],
    ids=lambda options: "-".join(options),
)
@torch.no_grad()
def test_generate_options_equal_generation_from_the_embeddings(
    family: Family, model: Any, tokens: str, options: dict[str, Any]
) -> None:
    """Any way of decoding: the same new tokens as transformers gives from prompt embeddings made by hand."""
    images = [2, 1]
    inputs, sounds = make_inputs(images, family=family), make_sounds(sum(images))
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    length = max(map(len, rows))
    embeddings = torch.stack([torch.cat([torch.zeros(length - len(r), r.shape[1]), r]) for r in rows])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
    by_hand = {
        name: value for name, value in options.items() if name not in ("use_cache", "repetition_penalty")
    }
    torch.manual_seed(5)
    want = None
    if "repetition_penalty" not in options:
        want = model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=NEW, **by_hand)
        want = want if isinstance(want, Tensor) else want.sequences
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    torch.manual_seed(5)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(**inputs, max_new_tokens=NEW, **options)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = inputs["input_ids"].repeat_interleave(len(sequences) // len(images), 0)
    assert torch.equal(sequences[:, : prompt.shape[1]], prompt)
    if want is not None:
        assert torch.equal(sequences[:, prompt.shape[1] :], want)


@torch.no_grad()
def test_visual_tokens_are_what_the_language_model_reads(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1, 1], family=family), make_sounds(2)
    expected = family.hear(model, inputs, TinyEncoder().embed(sounds, RATE), K, tokens)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    pictures = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    visual = soundclip.visual_tokens(**pictures, sounds=sounds, sampling_rate=RATE)
    for got, want in zip(visual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cache_is_as_long_as_the_tokens(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([2], family=family), make_sounds(2)
    [row] = expected_rows(model, inputs, sounds, K, tokens, family=family)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    assert output.past_key_values.layers[0].keys.shape[2] == len(row) + 1
    assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + 1  # the caller's places


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        first = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], 1)
        again = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        fresh = generate(model, again)
        del again["pixel_values"]
        cached = generate(model, again, past_key_values=first.past_key_values)
    [row] = expected_rows(model, {**inputs, **again}, sounds, K, tokens, family=family)
    assert fresh == cached == [reference.greedy(model, row, NEW)]


def test_a_streamer_in_a_thread_gets_the_callers_prompt(family: Family, model: Any, tokens: str) -> None:
    from transformers import TextIteratorStreamer

    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(f"{int(i)} " for i in ids)

    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        expected = generate(model, inputs)[0]
        streamer = TextIteratorStreamer(Words(), skip_prompt=False, timeout=60)
        options = {**inputs, "streamer": streamer, "max_new_tokens": NEW, "do_sample": False}
        thread = threading.Thread(target=model.generate, kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert [int(word) for word in text.split()] == inputs["input_ids"][0].tolist() + expected


def test_two_threads_hear_two_sounds(family: Family, model: Any) -> None:
    soundclip = patch(model, TinyEncoder(), k=K)
    inputs = make_inputs([1], family=family)
    sounds = make_sounds(2, seed=3)
    alone = []
    for sound in sounds:
        with soundclip.audio(sound, sampling_rate=RATE):
            alone.append(scores(model, inputs))
    assert not torch.equal(*alone)
    ready = threading.Barrier(2, timeout=60)
    same = [False, False]

    def listen(i: int) -> None:
        with soundclip.audio(sounds[i], sampling_rate=RATE):
            ready.wait()
            same[i] = all(torch.equal(scores(model, inputs), alone[i]) for _ in range(5))
            ready.wait()

    threads = [threading.Thread(target=listen, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True, True]


class TestMistakes:
    """Refused before any work is done: the tower isn't asked."""

    @pytest.fixture(autouse=True)
    def forbid_work(self, model: Any) -> None:
        def fail(*_: Any) -> None:
            raise AssertionError("the tower ran")

        model.model.vision_tower.register_forward_pre_hook(fail)

    def test_more_sounds_or_images(self, family: Family, model: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        inputs = make_inputs([1, 2], family=family)
        pictures = {name: value[:2] for name, value in inputs.items() if len(value) == 3}
        more = {name: torch.cat([value, value[:1]]) for name, value in inputs.items() if len(value) == 3}
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=1)):
            with (
                soundclip.audio(make_sounds(4), sampling_rate=RATE),
                pytest.raises(ValueError, match="4 sounds for 3 images: give one sound per image"),
            ):
                call(**inputs)
            with soundclip.audio(make_sounds(3), sampling_rate=RATE):
                with pytest.raises(
                    ValueError, match="2 images given, but the prompt has room for 3|for more"
                ):
                    call(**{**inputs, **pictures})
                with pytest.raises(ValueError, match="4 images given, but the prompt has room for 3"):
                    call(**{**inputs, **more})

    def test_placeholders_cut_by_max_length(self, family: Family, model: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        inputs = make_inputs([1], family=family)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name][:, :8]
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(
                ValueError, match=r"run of \d image tokens, but an image is \d+: were they cut by max_length"
            ),
        ):
            model.generate(**inputs, max_new_tokens=1)

    def test_no_image_for_a_sound(self, model: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            for ids in (torch.tensor([[1, 5, 6]]), torch.tensor([[1, IMAGE_TOKEN, 6]])):
                with pytest.raises(ValueError, match="a sound needs an image"):
                    model.generate(ids, max_new_tokens=1)
                with pytest.raises(ValueError, match="a sound needs an image"):
                    model(ids)

    def test_inputs_embeds(self, family: Family, model: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        inputs = make_inputs([1], family=family)
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            for call in (model, model.generate):
                with pytest.raises(ValueError, match="inputs_embeds"):
                    call(inputs_embeds=embeddings, **inputs)

    def test_k_above_the_patches(self, model: Any) -> None:
        with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
            patch(model, TinyEncoder(), k=10)
        soundclip = patch(model, TinyEncoder(), k=9)
        with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
            soundclip.k = 10
        assert soundclip.k == 9

    def test_a_model_without_weights(self, model: Any) -> None:
        with pytest.raises(ValueError, match="on the meta device.*from_pretrained"):
            patch(model.to("meta"), TinyEncoder(), k=K)


def test_an_offloaded_model_has_weights(family: Family, model: Any) -> None:
    from accelerate import cpu_offload

    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(sounds, sampling_rate=RATE):
        expected = scores(model, inputs)
    soundclip.unpatch()
    cpu_offload(model)
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert torch.equal(scores(model, inputs), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_on_a_gpu(family: Family, model: Any, tokens: str) -> None:
    """In float64, which a GPU doesn't round in its own way (TF32)."""
    inputs, sounds = make_inputs([1, 2], family=family), make_sounds(3)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    soundclip = patch(model.double(), TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        expected = model(**inputs).logits
        moved = model.to("cuda")(**{name: value.to("cuda") for name, value in inputs.items()}).logits
    assert moved.device.type == "cuda"
    torch.testing.assert_close(moved.cpu(), expected, rtol=1e-5, atol=1e-5)
