"""Every family, driven by its users' own code: what goes in and comes out is in the places of the caller's prompt."""

import copy
import functools
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StaticCache,
    StoppingCriteriaList,
)

from llava_soundclip import patch
from tests.conftest import IMAGE_TOKEN, PAD, TinyEncoder
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
from tests.test_patching import generate, scores


def by_hand(model: Any, inputs: Any, sounds: Any, tokens: str, family: Family) -> list[list[int]]:
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    return [reference.greedy(model, row, NEW) for row in rows]


def four_dimensions(mask: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """A causal mask for the last `queries` of the tokens: (B, 1, queries, tokens)."""
    columns = mask.shape[1]
    seen = torch.ones(columns, columns).tril()[-queries:].bool() & mask.bool()[:, None, None]
    seen |= torch.eye(columns).bool()[-queries:]  # padding sees itself, else its scores are NaN
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", ["ints", "floats", "bools", "4-D", "4-D bools", "positions"])
@torch.no_grad()
def test_a_decode_loop_with_a_mask_that_grows(family: Family, model: Any, tokens: str, kind: str) -> None:
    inputs, sounds = make_inputs([1, 2], family=family), make_sounds(3)
    expected = by_hand(model, inputs, sounds, tokens, family)
    mask = inputs.pop("attention_mask")

    def given(length: int) -> dict[str, Tensor]:
        if kind in ("4-D", "4-D bools"):
            dtype = torch.bool if kind == "4-D bools" else torch.float32
            return {"attention_mask": four_dimensions(mask, length, dtype)}
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        dtype = {"floats": torch.float32, "bools": torch.bool}.get(kind, torch.int64)
        own = {"position_ids": positions} if kind == "positions" else {}
        return {"attention_mask": mask.to(dtype), **own}

    words: list[Tensor] = []
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        cache, call = DynamicCache(config=model.config), inputs
        for _ in range(NEW):
            length = call["input_ids"].shape[1]
            output = model(**call, **given(length), past_key_values=cache, use_cache=True)
            assert output.logits.shape[1] == length and cache.get_seq_length() == mask.shape[1]
            words.append(output.logits[:, -1:].argmax(-1))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            call = {"input_ids": words[-1]}
    assert torch.cat(words, 1).tolist() == expected


@torch.no_grad()
def test_rows_that_grow_differently_need_no_mask(family: Family, model: Any, tokens: str) -> None:
    """Without a mask, the stock model takes padding for words."""
    inputs, sounds = make_inputs([1, 2], family=family), make_sounds(3)
    del inputs["attention_mask"]
    every = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
    rows = expected_rows(model, every, sounds, K, tokens, family=family)
    places = expected_places(model, every, sounds, K, tokens, family=family)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model(**inputs, use_cache=True)
        word = output.logits[:, -1:].argmax(-1)
        after = model(input_ids=word, past_key_values=output.past_key_values).logits
    embed = model.get_input_embeddings()
    for row, (want, read) in enumerate(zip(rows, places, strict=True)):
        expected = reference.logits(model, torch.cat([want, embed(word[row])]))
        torch.testing.assert_close(output.logits[row], expected[read], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after[row, 0], expected[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prompt_read_in_pieces(family: Family, model: Any, tokens: str) -> None:
    """Words before the image, the image, and words after it, each in a call of its own."""
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    [row] = expected_rows(model, inputs, sounds, K, tokens, family=family)
    ids = inputs["input_ids"]
    is_image = (ids[0] == IMAGE_TOKEN).nonzero()[:, 0]
    start, stop = int(is_image[0]), int(is_image[-1]) + 1
    pictures = {name: inputs[name] for name in inputs.keys() - {"input_ids", "attention_mask"}}
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    cache, pieces = DynamicCache(config=model.config), []
    with soundclip.audio(sounds, sampling_rate=RATE):
        for piece in ({"input_ids": ids[:, :start]}, {"input_ids": ids[:, start:stop], **pictures}):
            pieces.append(model(**piece, past_key_values=cache, use_cache=True).logits)
    pieces.append(
        model(input_ids=ids[:, stop:], past_key_values=cache).logits
    )  # outside: the cache has heard
    [read] = expected_places(model, inputs, sounds, K, tokens, family=family)
    expected = reference.logits(model, row)[read]
    torch.testing.assert_close(torch.cat(pieces, 1)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["inside", "outside"])
@torch.no_grad()
def test_a_follow_up_on_a_cache_with_a_sound(family: Family, model: Any, tokens: str, where: str) -> None:
    inputs, sounds = make_inputs([1, 2], family=family), make_sounds(3)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)

    def follow(first: Any) -> Any:
        more = torch.tensor([[7, 8, 9]] * 2)
        ids = torch.cat([first.sequences, more], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, NEW + 3, dtype=torch.long)], 1)
        again = {"input_ids": ids, "attention_mask": mask}
        kept = copy.deepcopy(first.past_key_values)
        said = [generate(model, again, past_key_values=cache) for cache in (kept, first.past_key_values)]
        assert said[0] == said[1]
        return again, said[0]

    with soundclip.audio(sounds, sampling_rate=RATE):
        first = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
        if where == "inside":
            again, said = follow(first)
    if where == "outside":
        again, said = follow(first)
    assert said == by_hand(model, {**inputs, **again}, sounds, tokens, family)


@torch.no_grad()
def test_a_prompt_cache_for_several_questions(family: Family, model: Any, tokens: str) -> None:
    """As transformers documents it: the whole inputs of each question, and a copy of the cache."""
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        cache = model(**inputs, past_key_values=DynamicCache(config=model.config)).past_key_values
    for question in ([7, 8], [9, 10, 11]):
        ids = torch.cat([inputs["input_ids"], torch.tensor([question])], 1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = by_hand(model, whole, sounds, tokens, family)
        words = {name: whole[name] for name in ("input_ids", "attention_mask")}
        with soundclip.audio(sounds, sampling_rate=RATE):
            assert generate(model, words, past_key_values=copy.deepcopy(cache)) == expected
            try:
                generate(family.build(), whole, past_key_values=stock_cache(family, inputs))
            except ValueError:  # transformers wants the new pictures only
                with pytest.raises(ValueError, match="the prompt has no image token"):
                    generate(model, whole, past_key_values=copy.deepcopy(cache))
            else:
                assert generate(model, whole, past_key_values=copy.deepcopy(cache)) == expected


def stock_cache(family: Family, inputs: Any) -> Any:
    return family.build()(**inputs, use_cache=True).past_key_values


@torch.no_grad()
def test_a_new_picture_in_a_second_turn(family: Family, model: Any, tokens: str) -> None:
    """The cache has the first picture, so the call has the new one and its sound only."""
    both, sounds = make_inputs([2], family=family), make_sounds(2)
    _, stock = family.pictures(2, torch.Generator())
    first = {name: value[:1] for name, value in both.items()}
    places = (both["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0]
    cut = int(places[stock[0] - 1]) + 1
    for name in ("input_ids", "attention_mask"):
        first[name] = both[name][:, :cut]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds[:1], sampling_rate=RATE):
        said = model.generate(**first, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([said.sequences, both["input_ids"][:, cut:]], 1)
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    new = {name: both[name][1:] for name in both.keys() - {"input_ids", "attention_mask"}}
    with soundclip.audio(sounds[1:], sampling_rate=RATE):
        answer = generate(model, {**again, **new}, past_key_values=said.past_key_values)
    assert answer == by_hand(model, {**both, **again}, sounds, tokens, family)


@torch.no_grad()
def test_a_cache_with_a_sound_can_be_cropped_pickled_and_used_again(
    family: Family, model: Any, tokens: str
) -> None:
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    length = inputs["input_ids"].shape[1]
    expected = by_hand(model, inputs, sounds, tokens, family)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        cache = model(**inputs, use_cache=True).past_key_values
        ends = []
        for keep in (pickle.loads(pickle.dumps(cache)), cache):
            keep.crop(-2)
            assert keep.get_seq_length() == length - 2
            ends.append(generate(model, {"input_ids": inputs["input_ids"]}, past_key_values=keep))
            assert keep.get_seq_length() == length + NEW - 1
        cache.reset()
        assert type(cache) is DynamicCache
    assert ends == [expected, expected]


@torch.no_grad()
def test_a_static_cache_of_the_callers_length(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    length = inputs["input_ids"].shape[1]
    expected = by_hand(model, inputs, sounds, tokens, family)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + NEW - 1)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert generate(model, inputs, past_key_values=cache) == expected
        loop, call, words = (
            StaticCache(model.config.get_text_config(), max_cache_len=length + NEW),
            inputs,
            [],
        )
        for _ in range(NEW):
            output = model(**call, past_key_values=loop, use_cache=True)
            words.append(int(output.logits[0, -1].argmax()))
            call = {"input_ids": torch.tensor([words[-1:]])}
    assert [words] == expected


def test_a_static_cache_isnt_left_to_a_stock_call(family: Family, model: Any) -> None:
    inputs = make_inputs([1], family=family)
    stock = generate(model, inputs, cache_implementation="static")
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        assert generate(model, inputs, cache_implementation="static") != stock
    assert not hasattr(model, "_cache")
    assert generate(model, inputs, cache_implementation="static") == stock


@torch.no_grad()
def test_scores_of_an_answer(family: Family, model: Any, tokens: str) -> None:
    """Log-likelihood as evaluation harnesses take it: logits from the prompt's end on, by the caller's numbers."""
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    answer = torch.tensor([[11, 12, 13]])
    ids = torch.cat([inputs["input_ids"], answer], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    [row] = expected_rows(model, whole, sounds, K, tokens, family=family)
    expected = reference.logits(model, row).log_softmax(-1)[-4:-1].gather(1, answer[0][:, None]).sum()
    length = inputs["input_ids"].shape[1]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        logits = model(**whole).logits
        ends = [
            model(**whole, logits_to_keep=keep).logits for keep in (4, torch.arange(length - 1, length + 3))
        ]
        loss = model(**whole, labels=ids.clone().index_fill_(1, torch.arange(length), -100)).loss
    for kept in (logits[:, length - 1 :], *ends):
        got = kept[:, :-1].log_softmax(-1).gather(2, answer[..., None]).sum()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-3 * loss, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hidden_states_and_attentions(family: Family, tokens: str) -> None:
    model = family.build()
    model.set_attn_implementation("eager")
    inputs, sounds = make_inputs([2], family=family), make_sounds(2)
    [row] = expected_rows(model, inputs, sounds, K, tokens, family=family)
    [read] = expected_places(model, inputs, sounds, K, tokens, family=family)
    every = {"output_hidden_states": True, "output_attentions": True}
    expected = model.model.language_model(inputs_embeds=row[None], **every)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model(**inputs, **every)
    for got, want in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(got[0], want[0, read], rtol=1e-4, atol=1e-4)
    length = inputs["input_ids"].shape[1]
    for got, want in zip(output.attentions, expected.attentions, strict=True):
        summed = torch.zeros(*want.shape[:2], length, length)
        for query in range(length):
            for place, last in enumerate(read):
                first = read[place - 1] + 1 if place else 0
                summed[:, :, query, place] = want[:, :, read[query], first : last + 1].sum(-1)
        torch.testing.assert_close(got, summed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_callbacks_are_the_callers_own(family: Family, model: Any, tokens: str) -> None:
    """A criterion with attributes, and a processor that takes the place of `generate`'s own."""
    inputs, sounds = make_inputs([1, 1], family=family), make_sounds(2)
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    end = reference.greedy(model, rows[0], 2)[1]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    stop = StoppingCriteriaList([EosTokenCriteria(end)])
    with soundclip.audio(sounds, sampling_rate=RATE):
        said = generate(model, inputs, stopping_criteria=stop)
    expected = [reference.greedy(model, row, NEW) for row in rows]
    ends = [words.index(end) + 1 if end in words else NEW for words in expected]
    stopped = [words[:n] + [PAD] * (NEW - n) for words, n in zip(expected, ends, strict=True)]
    assert said == [words[: max(ends)] for words in stopped] and ends[0] == 2
    model.generation_config.repetition_penalty = 3.0
    mine = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2)])
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(
            **inputs,
            logits_processor=mine,
            max_new_tokens=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
    for row, ids, got in zip(rows, inputs["input_ids"], output.scores[0], strict=True):
        plain = reference.logits(model, row)[-1]
        plain[ids.unique()] *= torch.where(plain < 0, 1.2, 1 / 1.2)[ids.unique()]
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_processor_that_asks_the_model_again(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    other = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    rows = [expected_rows(model, given, sounds, K, tokens, family=family)[0] for given in (inputs, other)]
    expected = []
    for _ in range(NEW):
        one, two = (reference.logits(model, row)[-1] for row in rows)
        expected.append(int((1.5 * one - 0.5 * two).argmax()))
        rows = [torch.cat([row, model.get_input_embeddings()(torch.tensor(expected[-1:]))]) for row in rows]

    def contrast(ids: Tensor, scores: Tensor) -> Tensor:
        again = {**other, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return 1.5 * scores - 0.5 * model(**again, use_cache=False).logits[:, -1]

    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert generate(model, inputs, logits_processor=LogitsProcessorList([contrast])) == [expected]


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 5}], ids=str)
@torch.no_grad()
def test_other_ways_of_reading_and_decoding(family: Family, model: Any, tokens: str, options: Any) -> None:
    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    expected = by_hand(model, inputs, sounds, tokens, family)
    # Before transformers 5, looking up the prompt needs an end of text.
    model.generation_config.eos_token_id = next(word for word in range(90, 99) if word not in expected[0])
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert generate(model, inputs, **options) == expected
        for name, value in options.items():
            setattr(model.generation_config, name, value)
        assert generate(model, inputs) == expected


@torch.no_grad()
def test_arguments_by_place_of_a_subclass(family: Family, model: Any) -> None:
    stock = type(model)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stock.forward(self, *args, **kwargs)

    def generate_by_place(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stock.generate(self, *args, **kwargs)

    inputs, sounds = make_inputs([1], family=family), make_sounds(1)
    expected = by_hand(model, inputs, sounds, "zero", family)
    ids, rest = inputs["input_ids"], {name: inputs[name] for name in inputs.keys() - {"input_ids"}}
    calls = {"forward": forward, "generate": generate_by_place}
    for name, method in calls.items():
        model.__class__ = type("Mine", (stock,), {name: method})
        soundclip = patch(model, TinyEncoder(), k=K)
        with soundclip.audio(sounds, sampling_rate=RATE):
            if name == "forward":
                pixels = rest.pop("pixel_values")
                assert int(model(ids, pixels, **rest).logits[0, -1].argmax()) == expected[0][0]
                rest["pixel_values"] = pixels
            else:
                output = model.generate(ids, max_new_tokens=NEW, do_sample=False, **rest)
                assert output[:, ids.shape[1] :].tolist() == expected
        soundclip.unpatch()
        assert type(model).__name__ == "Mine"


def test_copies_and_pickles_are_stock_models(family: Family, model: Any) -> None:
    inputs = make_inputs([1], family=family)
    words, stock = generate(family.build(), inputs), type(model)
    soundclip = patch(model, TinyEncoder(), k=K)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    copies.append(pickle.loads(pickle.dumps(copies[0])))
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        assert generate(model, inputs) != words
        for twin in (*copies, copy.deepcopy(model)):
            assert type(twin) is stock and type(twin.model) is type(family.build().model)
            assert generate(twin, inputs) == words
    soundclip.unpatch()
    assert type(model) is stock


def test_new_models_of_its_class_are_stock_models(family: Family, model: Any, tmp_path: Path) -> None:
    inputs, stock = make_inputs([1], family=family), type(model)
    words = generate(model, inputs)
    soundclip = patch(model, TinyEncoder(), k=K)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [stock.__name__]
    twins = [type(model)(model.config).eval(), type(model).from_pretrained(tmp_path)]
    twins[0].load_state_dict(model.state_dict())
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        for twin in twins:
            assert type(twin) is stock and generate(twin, inputs) == words
        assert generate(model, inputs) != words


def test_a_method_of_the_class_that_is_replaced_later_is_called(family: Family, model: Any) -> None:
    inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
    cls = type(model.model).__base__
    stock, calls = cls.get_image_features, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return stock(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cls, "get_image_features", counted)
        scores(model, inputs)
        assert calls == [model.model]
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            heard = scores(model, inputs)
        assert len(calls) == 2
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        assert torch.equal(scores(model, inputs), heard)


class TestDeafness:
    """A path that doesn't hear an open sound says so."""

    def test_image_tokens_without_an_image(self, family: Family, model: Any) -> None:
        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        del inputs["pixel_values"]
        cache = DynamicCache(config=model.config)
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(ValueError, match="the prompt has image tokens without pixel_values"),
        ):
            model(**inputs, past_key_values=cache)

    def test_a_tower_replaced_after_the_patch(self, family: Family, model: Any) -> None:
        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        model.model.vision_tower = family.build().model.vision_tower
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            for call in (scores, generate):
                with pytest.raises(RuntimeError, match="the vision tower was replaced after the patch"):
                    call(model, inputs)

    def test_image_features_of_ones_own(self, family: Family, model: Any, tokens: str) -> None:
        """An instance's method that is replaced after the patch, and calls the class's."""
        stock = type(model.model).get_image_features
        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K, tokens=tokens)

        @functools.wraps(stock)
        def own(*args: Any, **kwargs: Any) -> Any:
            return stock(model.model, *args, **kwargs)

        model.model.get_image_features = own
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(RuntimeError, match="get_image_features was replaced after the patch"),
        ):
            scores(model, inputs)

    def test_a_tower_called_by_name_or_through_a_wrapper(self, family: Family, model: Any) -> None:
        class Wrapper(nn.Module):
            def __init__(self, tower: Any) -> None:
                super().__init__()
                self.tower = tower

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return self.tower.forward(*args, **kwargs)

        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            heard = scores(model, inputs)
            model.model.vision_tower = Wrapper(model.model.vision_tower)
            assert torch.equal(scores(model, inputs), heard)

    def test_images_that_were_encoded_before(self, family: Family, model: Any) -> None:
        import inspect

        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            pytest.skip("transformers before 5.18 has no mm_encoder_outputs")
        inputs = make_inputs([1], family=family)
        soundclip = patch(model, TinyEncoder(), k=K)
        pictures = {name: inputs[name] for name in inputs.keys() - {"input_ids", "attention_mask"}}
        encoded = {"image": model.get_image_features(**pictures, return_dict=True)}
        call = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": encoded}
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(ValueError, match="a sound is open, but these images were encoded before"),
        ):
            model(**call)

    @torch.no_grad()
    def test_replicas_of_data_parallel(self, family: Family, model: Any) -> None:
        """On another device, which they must use instead of the original's."""

        def replica(module: Any) -> Any:
            twin = module._replicate_for_data_parallel()
            for name, value in module._parameters.items():
                twin._parameters[name] = None
                if value is not None:
                    del twin._parameters[name]
                    setattr(twin, name, value.detach().to("meta"))
            for name, value in module._buffers.items():
                twin._buffers[name] = value if value is None else value.to("meta")
            for name, child in module._modules.items():
                twin._modules[name] = replica(child)
            return twin

        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        pictures = {
            name: value.to("meta") if name == "pixel_values" else value
            for name, value in inputs.items()
            if name not in ("input_ids", "attention_mask")
        }
        for _ in range(2):
            output = replica(model).model.get_image_features(**pictures)
        features = getattr(output, "pooler_output", output)
        assert all(image.device.type == "meta" for image in features)
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(RuntimeError, match="nn.DataParallel splits the images and not their sounds"),
        ):
            replica(model).model.get_image_features(**pictures)

    def test_a_cache_with_a_sound_after_unpatch(self, family: Family, model: Any) -> None:
        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        with torch.no_grad(), soundclip.audio(make_sounds(1), sampling_rate=RATE):
            cache = model(**inputs, use_cache=True).past_key_values
        soundclip.unpatch()
        with pytest.raises(RuntimeError, match="this cache holds a sound"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)

    def test_a_mask_that_is_too_short(self, family: Family, model: Any) -> None:
        inputs, soundclip = make_inputs([1], family=family), patch(model, TinyEncoder(), k=K)
        with torch.no_grad(), soundclip.audio(make_sounds(1), sampling_rate=RATE):
            cache = model(**inputs, use_cache=True).past_key_values
            with pytest.raises(
                ValueError, match=r"attention_mask has 1 columns, but the prompt has \d+ tokens"
            ):
                model(input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 1), past_key_values=cache)
