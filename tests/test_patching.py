"""The handle: what it promises about threads, undoing, gradients and mistakes."""

import copy
import gc
import io
import threading
import warnings
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from llava_soundclip import Projector, SoundCLIP, patch, unpatch
from llava_soundclip.hosts import huggingface
from tests.conftest import IMAGE_TOKEN, PATCHES, WIDTH, TinyEncoder, build_tiny_llava
from tests.hosts import reference
from tests.hosts.families import (
    NEW,
    RATE,
    K,
    expected_places,
    expected_rows,
    make_inputs,
    make_sounds,
)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a patch could leave behind, on every module."""
    hooks = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"]
    hooks += ["_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"]
    return {
        "modules": {
            name: (
                type(module),
                sorted(vars(module)),
                [list(getattr(module, hook).values()) for hook in hooks],
            )
            for name, module in model.named_modules()
        },
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "parameters": {name: value.is_meta or id(value) for name, value in model.named_parameters()},
        "weights": {
            name: value.is_meta or float(value.detach().double().sum())
            for name, value in model.state_dict().items()
        },
    }


def scores(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return make_inputs([1, 1])


@pytest.fixture
def soundclip(tiny_llava: Any) -> SoundCLIP:
    return patch(tiny_llava, TinyEncoder(), k=K)


class TestStock:
    def test_without_a_sound_and_after_unpatch_nothing_differs(self, tiny_llava: Any, inputs: Any) -> None:
        stock, words = scores(tiny_llava, inputs), generate(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K)
        assert torch.equal(scores(tiny_llava, inputs), stock) and generate(tiny_llava, inputs) == words
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            heard, heard_words = scores(tiny_llava, inputs), generate(tiny_llava, inputs)
        assert heard.shape == stock.shape and not torch.equal(heard, stock)
        assert heard_words != words
        assert torch.equal(scores(tiny_llava, inputs), stock) and generate(tiny_llava, inputs) == words
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            assert torch.equal(scores(tiny_llava, inputs), heard)
        soundclip.unpatch()
        assert torch.equal(scores(tiny_llava, inputs), stock) and generate(tiny_llava, inputs) == words
        assert snapshot(tiny_llava) == before

    def test_the_snapshot_sees_what_a_sloppy_undo_leaves(self, tiny_llava: Any, inputs: Any) -> None:
        scores(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        patch(tiny_llava, TinyEncoder(), k=K)
        assert snapshot(tiny_llava) != before
        tiny_llava.__class__ = type(tiny_llava).__base__
        assert snapshot(tiny_llava) != before

    def test_an_exception_in_a_call_leaves_nothing(self, tiny_llava: Any, inputs: Any) -> None:
        stock = scores(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K)

        def fail(*args: Any) -> None:
            raise ZeroDivisionError

        for module in [
            tiny_llava.model.vision_tower,
            tiny_llava.model.multi_modal_projector,
            tiny_llava.lm_head,
        ]:
            broken = module.register_forward_hook(fail)
            with pytest.raises(ZeroDivisionError), soundclip.audio(make_sounds(2), sampling_rate=RATE):
                generate(tiny_llava, inputs)
            broken.remove()
            assert torch.equal(scores(tiny_llava, inputs), stock)
        soundclip.unpatch()
        assert snapshot(tiny_llava) == before

    def test_other_peoples_hooks_stay(self, tiny_llava: Any, inputs: Any) -> None:
        calls: Counter[str] = Counter()
        tower = tiny_llava.model.vision_tower
        tower.register_forward_hook(lambda *_: calls.update(["before"]))
        scores(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K)
        after = tower.register_forward_hook(lambda *_: calls.update(["after"]))
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            scores(tiny_llava, inputs)
        soundclip.unpatch()
        scores(tiny_llava, inputs)
        assert calls == {"before": 3, "after": 2}
        after.remove()
        assert snapshot(tiny_llava) == before

    def test_a_method_wrapped_after_the_patch_stays_after_it(self, soundclip: Any, inputs: Any) -> None:
        model = soundclip.model
        ours = model.generate
        model.generate = lambda *args, **kwargs: ours(*args, **kwargs)
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            heard = generate(model, inputs)
            soundclip.unpatch()
            stock = generate(model, inputs)
        assert heard != stock
        del model.generate
        assert generate(model, inputs) == stock

    def test_a_class_replaced_after_the_patch_is_named_and_nothing_is_undone(
        self, soundclip: Any, inputs: Any
    ) -> None:
        model = soundclip.model
        ours = type(model)
        model.__class__ = type("Wrapped", (ours,), {})
        with pytest.raises(RuntimeError, match="the class of LlavaForConditionalGeneration was replaced"):
            soundclip.unpatch()
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            heard = generate(model, inputs)
        model.__class__ = ours
        soundclip.unpatch()
        assert generate(model, inputs) != heard

    def test_an_own_method_replaced_after_the_patch_is_named(self, tiny_llava: Any) -> None:
        stock = tiny_llava.generate
        tiny_llava.generate = lambda *args, **kwargs: stock(*args, **kwargs)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K)
        ours, tiny_llava.generate = tiny_llava.generate, lambda *args, **kwargs: None
        with pytest.raises(RuntimeError, match=r"LlavaForConditionalGeneration\.generate was replaced"):
            soundclip.unpatch()
        tiny_llava.generate = ours
        soundclip.unpatch()

    def test_a_method_that_the_user_had_replaced_comes_back(self, tiny_llava: Any) -> None:
        stock = tiny_llava.generate
        mine = tiny_llava.generate = lambda *args, **kwargs: stock(*args, **kwargs)
        patch(tiny_llava, TinyEncoder(), k=K).unpatch()
        assert vars(tiny_llava)["generate"] is mine

    def test_an_install_that_fails_half_way_rolls_back(
        self, tiny_llava: Any, monkeypatch: Any, inputs: Any
    ) -> None:
        scores(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        original = huggingface.override

        def fail_at_generate(owner: Any, name: str, *args: Any) -> None:
            original(owner, name, *args)
            if name == "generate":
                raise ZeroDivisionError

        monkeypatch.setattr(huggingface, "override", fail_at_generate)
        with pytest.raises(ZeroDivisionError):
            patch(tiny_llava, TinyEncoder(), k=K)
        assert snapshot(tiny_llava) == before

    def test_patching_again_replaces_the_earlier_patch(self, tiny_llava: Any, inputs: Any) -> None:
        scores(tiny_llava, inputs)
        before = snapshot(tiny_llava)
        first = patch(tiny_llava, TinyEncoder(), k=1)
        second = patch(tiny_llava, TinyEncoder(), k=K)
        assert not first.is_installed and second.is_installed
        with pytest.raises(RuntimeError, match="unpatched, or patched again"), first.audio(make_sounds(2)):
            pass
        unpatch(tiny_llava)
        assert snapshot(tiny_llava) == before
        second.unpatch()  # twice is fine
        with pytest.raises(ValueError, match="isn't patched"):
            unpatch(tiny_llava)

    def test_unpatching_inside_a_block_makes_the_model_stock(self, soundclip: Any, inputs: Any) -> None:
        model = soundclip.model
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            heard = scores(model, inputs)
            soundclip.unpatch()
            stock = scores(model, inputs)
        assert not torch.equal(heard, stock) and torch.equal(scores(model, inputs), stock)

    def test_a_patched_model_can_be_collected(self) -> None:
        model = build_tiny_llava()
        soundclip = patch(model, TinyEncoder(), k=K)
        gone = weakref.ref(model)
        del model, soundclip
        gc.collect()
        assert gone() is None


class TestKnobs:
    def test_changed_between_calls(self, soundclip: Any, inputs: Any) -> None:
        model = soundclip.model
        seen = {}
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            for k, norm, tokens in [
                (0, "keep", "zero"),
                (K, "keep", "zero"),
                (K, "match", "zero"),
                (K, "keep", "drop"),
            ]:
                soundclip.k, soundclip.norm, soundclip.tokens = k, norm, tokens
                seen[k, norm, tokens] = scores(model, inputs)
        values = list(seen.values())
        assert all(not torch.equal(a[:, -1], b[:, -1]) for i, a in enumerate(values) for b in values[:i])

    def test_k_of_all_patches_differs_from_stock_only_by_the_slot(self, soundclip: Any, inputs: Any) -> None:
        soundclip.k = PATCHES
        with torch.no_grad():
            tokens = soundclip.visual_tokens(inputs["pixel_values"], make_sounds(2), sampling_rate=RATE)
            features = soundclip.model.model.get_image_features(inputs["pixel_values"])
        stock = torch.stack(list(getattr(features, "pooler_output", features)))
        torch.testing.assert_close(tokens[:, 1:], stock)

    def test_alignment(self, tiny_llava: Any, inputs: Any) -> None:
        projector = Projector(16, WIDTH, 8)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K, projector=projector)
        z = soundclip.embed(make_sounds(2), sampling_rate=RATE)
        raw = soundclip.align(z)
        assert torch.equal(raw, torch.cat([z, torch.zeros(2, WIDTH - 16)], 1))
        soundclip.alignment = "projected"
        projected = soundclip.align(z)
        torch.testing.assert_close(projected, projector(z))
        soundclip.alignment = 0.25
        torch.testing.assert_close(soundclip.align(z), 0.25 * raw + 0.75 * projected)

    def test_a_sound_goes_to_where_the_projector_is(self, tiny_llava: Any) -> None:
        projector = Projector(16, WIDTH, 8).to("meta")
        soundclip = patch(tiny_llava, TinyEncoder(), k=K, projector=projector, alignment=0.5)
        assert soundclip.align(torch.randn(2, 16)).device.type == "meta"

    @pytest.mark.parametrize(
        ("knob", "value"),
        [("k", -1), ("norm", "l2"), ("tokens", "skip"), ("alignment", "cooked"), ("alignment", 1.5)],
    )
    def test_a_bad_value_is_refused_and_the_old_one_stays(
        self, soundclip: Any, knob: str, value: Any
    ) -> None:
        before = getattr(soundclip, knob)
        with pytest.raises(ValueError):
            setattr(soundclip, knob, value)
        assert getattr(soundclip, knob) == before


class TestThreads:
    def test_two_threads_hear_two_sounds_on_one_model(self, soundclip: Any) -> None:
        model = soundclip.model
        inputs = make_inputs([1])
        sounds = make_sounds(2, seed=3)
        alone = []
        for sound in sounds:
            with soundclip.audio(sound, sampling_rate=RATE):
                alone.append(generate(model, inputs))
        assert alone[0] != alone[1]
        ready = threading.Barrier(2)
        heard: list[Any] = [None, None]

        def listen(i: int) -> None:
            with soundclip.audio(sounds[i], sampling_rate=RATE):
                ready.wait()
                heard[i] = [generate(model, inputs) for _ in range(5)]
                ready.wait()

        threads = [threading.Thread(target=listen, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert heard == [[alone[0]] * 5, [alone[1]] * 5]

    def test_a_plain_thread_hears_the_only_sound_that_is_open(self, soundclip: Any) -> None:
        from transformers import TextIteratorStreamer

        class Words:
            def decode(self, ids: Any, **_: Any) -> str:
                return "".join(f"{int(i)} " for i in ids)

        inputs, sound = make_inputs([1]), make_sounds(1)[0]
        model = soundclip.model
        with soundclip.audio(sound, sampling_rate=RATE):
            expected = generate(model, inputs)[0]
            streamer = TextIteratorStreamer(Words(), skip_prompt=False, timeout=60)
            options = {**inputs, "streamer": streamer, "max_new_tokens": NEW, "do_sample": False}
            thread = threading.Thread(target=model.generate, kwargs=options)
            thread.start()
            text = "".join(streamer)
            thread.join()
        assert [int(word) for word in text.split()] == inputs["input_ids"][0].tolist() + expected

    def test_a_plain_thread_hears_the_outer_sound_after_an_inner_block_ended(self, soundclip: Any) -> None:
        inputs, (outer, inner) = make_inputs([1]), make_sounds(2)
        heard = []

        def listen() -> None:
            heard.append(generate(soundclip.model, inputs))

        with soundclip.audio(outer, sampling_rate=RATE):
            expected = generate(soundclip.model, inputs)
            with soundclip.audio(inner, sampling_rate=RATE):
                assert generate(soundclip.model, inputs) != expected
            thread = threading.Thread(target=listen)
            thread.start()
            thread.join()
        assert heard == [expected]

    def test_a_plain_thread_is_stock_after_all_blocks_ended(self, soundclip: Any) -> None:
        inputs, (outer, inner) = make_inputs([1]), make_sounds(2)
        stock = generate(soundclip.model, inputs)
        heard = []
        with soundclip.audio(outer, sampling_rate=RATE), soundclip.audio(inner, sampling_rate=RATE):
            assert generate(soundclip.model, inputs) != stock
        thread = threading.Thread(target=lambda: heard.append(generate(soundclip.model, inputs)))
        thread.start()
        thread.join()
        assert heard == [stock]

    def test_two_patched_models_in_one_process(self, inputs: Any) -> None:
        first, second = (patch(build_tiny_llava(seed=seed), TinyEncoder(), k=K) for seed in (0, 1))
        stock = scores(second.model, inputs)
        sounds = make_sounds(2)
        with first.audio(sounds, sampling_rate=RATE):
            alone = scores(first.model, inputs)
            assert torch.equal(scores(second.model, inputs), stock)
            with second.audio(sounds[::-1], sampling_rate=RATE):
                assert torch.equal(scores(first.model, inputs), alone)
                assert not torch.equal(scores(second.model, inputs), stock)

    def test_the_inner_block_is_heard_then_the_outer_one_again(self, soundclip: Any) -> None:
        inputs, (one, other) = make_inputs([1]), make_sounds(2)
        with soundclip.audio(one, sampling_rate=RATE):
            heard = scores(soundclip.model, inputs)
            with soundclip.audio(other, sampling_rate=RATE):
                assert not torch.equal(scores(soundclip.model, inputs), heard)
            assert torch.equal(scores(soundclip.model, inputs), heard)


class TestCalls:
    """Ways of calling that users have already."""

    @pytest.mark.parametrize("tokens", ["zero", "drop"])
    def test_a_second_turn_with_the_sound_passed_again(self, soundclip: Any, tokens: str) -> None:
        soundclip.tokens = tokens
        model, sound = soundclip.model, make_sounds(1)
        inputs = make_inputs([1])
        with soundclip.audio(sound, sampling_rate=RATE):
            first = model.generate(
                **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
            )
            ids = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], 1)
            again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            fresh = generate(model, {**again, "pixel_values": inputs["pixel_values"]})
            cached = generate(model, again, past_key_values=first.past_key_values)
        rows = expected_rows(model, {**again, "pixel_values": inputs["pixel_values"]}, sound, K, tokens)
        with torch.no_grad():
            assert fresh == cached == [reference.greedy(model, rows[0], NEW)]

    def test_the_cache_is_really_shorter_with_drop(self, soundclip: Any) -> None:
        soundclip.tokens = "drop"
        inputs = make_inputs([1])
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            output = soundclip.model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        keys = output.past_key_values.layers[0].keys
        assert keys.shape[2] == inputs["input_ids"].shape[1] - PATCHES + K + 1 + 1

    def test_lengths_and_callbacks_see_the_callers_prompt(self, soundclip: Any) -> None:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        inputs = make_inputs([1, 2])
        ids = inputs["input_ids"]
        prompts = []

        def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
            prompts.append(input_ids[:, : ids.shape[1]].clone())
            return scores

        def stop(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= ids.shape[1] + 3)

        def allowed(batch: int, input_ids: Tensor) -> list[int]:
            assert torch.equal(input_ids[: ids.shape[1]], ids[batch])
            return [41, 42]

        model = soundclip.model
        with soundclip.audio(make_sounds(3), sampling_rate=RATE):
            output = model.generate(
                **inputs,
                max_new_tokens=9,
                logits_processor=LogitsProcessorList([processor]),
                stopping_criteria=StoppingCriteriaList([stop]),
                prefix_allowed_tokens_fn=allowed,
            )
            assert output.shape[1] == ids.shape[1] + 3
            assert set(output[:, ids.shape[1] :].flatten().tolist()) <= {41, 42}
            assert model.generate(**inputs, max_length=ids.shape[1] + 4).shape[1] == ids.shape[1] + 4
            config = GenerationConfig(max_length=ids.shape[1] + 5, pad_token_id=0)
            assert model.generate(**inputs, generation_config=config).shape[1] == ids.shape[1] + 5
            assert config.max_length == ids.shape[1] + 5
        assert prompts and all(torch.equal(prompt, ids) for prompt in prompts)

    @pytest.mark.parametrize("tokens", ["zero", "drop"])
    def test_least_lengths_count_the_callers_prompt(self, soundclip: Any, tokens: str) -> None:
        """The first token that the model would write ends a text: a least length puts it off, as in stock."""
        from transformers import GenerationConfig

        soundclip.tokens = tokens
        model, inputs, sounds = soundclip.model, make_inputs([1]), make_sounds(1)
        length = inputs["input_ids"].shape[1]
        [row] = expected_rows(model, inputs, sounds, K, tokens)
        by_hand = {"inputs_embeds": row[None], "attention_mask": torch.ones(1, len(row), dtype=torch.int64)}
        end = int(model.generate(**by_hand, max_new_tokens=1, do_sample=False)[0, 0])
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end}
        assert model.generate(**by_hand, **options).tolist() == [[end]]
        for least in (1, 3, 5):
            expected = model.generate(**by_hand, min_new_tokens=least, **options).tolist()
            assert end not in expected[0][:least] and len(expected[0]) >= least
            with soundclip.audio(sounds, sampling_rate=RATE):
                config = GenerationConfig(min_length=length + least, pad_token_id=0)
                before = config.to_dict()
                model.generation_config.min_length = length + least
                by_the_models_config = model.generate(**inputs, **options)
                model.generation_config.min_length = GenerationConfig().min_length
                outputs = [
                    by_the_models_config,
                    model.generate(**inputs, min_length=length + least, **options),
                    model.generate(**inputs, min_new_tokens=least, **options),
                    model.generate(**inputs, generation_config=config, **options),
                ]
            assert [output[:, length:].tolist() for output in outputs] == [expected] * 4
            assert config.to_dict() == before
        with soundclip.audio(sounds, sampling_rate=RATE):
            for least in (0, 2, length):  # shorter than the prompt: nothing is put off
                assert model.generate(**inputs, min_length=least, **options)[0, length:].tolist() == [end]

    def test_inference_mode_and_gradients(self, tiny_llava: Any, inputs: Any) -> None:
        projector = Projector(16, WIDTH, 8)
        soundclip = patch(tiny_llava, TinyEncoder(), k=K, projector=projector, alignment="projected")
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
        with torch.inference_mode(), soundclip.audio(make_sounds(2), sampling_rate=RATE):
            heard = tiny_llava(**inputs, labels=labels)
            loss = tiny_llava(**inputs, labels=labels).loss
        assert torch.equal(heard.loss, loss)
        with torch.inference_mode():
            block = soundclip.audio(make_sounds(2), sampling_rate=RATE)
            block.__enter__()
        tiny_llava(**inputs, labels=labels).loss.backward()
        block.__exit__(None, None, None)
        assert all(
            parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters()
        )

    @pytest.mark.parametrize("tokens", ["zero", "drop"])
    def test_a_loss_is_that_of_the_callers_labels(self, soundclip: Any, tokens: str) -> None:
        """Each labelled token is predicted from all that was read before it."""
        soundclip.tokens = tokens
        inputs, sounds = make_inputs([1, 2]), make_sounds(3)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, -100)
        labels[inputs["attention_mask"] == 0] = -100
        labels[labels == 1] = -100  # the first token of a row would be predicted from its padding
        losses, smoothed = [], []
        with torch.no_grad():
            rows = expected_rows(soundclip.model, inputs, sounds, K, tokens)
            places = expected_places(soundclip.model, inputs, sounds, K, tokens)
            for row, read, label in zip(rows, places, labels, strict=True):
                logs = reference.logits(soundclip.model, row)[read][:-1].log_softmax(-1)
                for log, word in zip(logs, label[-len(read) :][1:].tolist(), strict=True):
                    if word != -100:
                        losses.append(float(-log[word]))
                        smoothed.append(0.9 * losses[-1] - 0.1 * float(log.mean()))
        expected = torch.tensor(losses).mean()
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
        with torch.no_grad(), soundclip.audio(sounds, sampling_rate=RATE):
            for given in ({"labels": labels}, {"labels": labels, "shift_labels": shifted}):
                torch.testing.assert_close(soundclip.model(**inputs, **given).loss, expected)
            output = soundclip.model(**inputs)
            loss = LabelSmoother(0.1)(output, labels, shift_labels=True)  # what Trainer does
        torch.testing.assert_close(loss, torch.tensor(smoothed).mean())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, tiny_llava: Any, inputs: Any, dtype: torch.dtype) -> None:
        model = tiny_llava.to(dtype)
        soundclip = patch(model, TinyEncoder(), k=K)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with soundclip.audio(make_sounds(2), sampling_rate=RATE):
            assert scores(model, inputs).dtype == dtype
            assert len(generate(model, inputs)[0]) == NEW

    def test_a_right_padded_batch(self, soundclip: Any) -> None:
        left = make_inputs([1, 2])
        right = {name: value.clone() for name, value in left.items()}
        for ids, mask in zip(right["input_ids"], right["attention_mask"], strict=True):
            shift = int((mask == 0).sum())
            ids.copy_(ids.roll(-shift))
            mask.copy_(mask.roll(-shift))
        with soundclip.audio(make_sounds(3), sampling_rate=RATE):
            one, other = scores(soundclip.model, left), scores(soundclip.model, right)
        shift = int((left["attention_mask"][0] == 0).sum())
        torch.testing.assert_close(one[0, shift:], other[0, :-shift], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, under transformers 4.57
    def test_a_compiled_language_model(self, soundclip: Any) -> None:
        inputs = make_inputs([1])
        model = soundclip.model
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            expected = generate(model, inputs)
            model.model.language_model.forward = torch.compile(
                model.model.language_model.forward, backend="eager"
            )
            assert generate(model, inputs) == expected

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_accelerates_hooks_stay_in_force(self, inputs: Any, when: str) -> None:
        from accelerate import dispatch_model

        model = build_tiny_llava()
        expected = patch(build_tiny_llava(), TinyEncoder(), k=K)
        if when == "before":
            dispatch_model(model, {"": "cpu"}, force_hooks=True)
        soundclip = patch(model, TinyEncoder(), k=K)
        if when == "after":
            dispatch_model(model, {"": "cpu"}, force_hooks=True)
        sounds = make_sounds(2)
        with soundclip.audio(sounds, sampling_rate=RATE), expected.audio(sounds, sampling_rate=RATE):
            assert torch.equal(scores(model, inputs), scores(expected.model, inputs))
            assert generate(model, inputs) == generate(expected.model, inputs)
        soundclip.unpatch()
        expected.unpatch()
        assert hasattr(model, "_hf_hook")
        assert torch.equal(scores(model, inputs), scores(expected.model, inputs))

    def test_positional_arguments(self, soundclip: Any) -> None:
        inputs = make_inputs([1])
        model = soundclip.model
        with torch.no_grad(), soundclip.audio(make_sounds(1), sampling_rate=RATE):
            expected = model(**inputs).logits
            assert torch.equal(model(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
            assert torch.equal(
                model.generate(inputs["input_ids"], pixel_values=inputs["pixel_values"], max_new_tokens=2),
                model.generate(**inputs, max_new_tokens=2),
            )

    def test_several_layers_of_the_tower(self, inputs: Any) -> None:
        model = build_tiny_llava(layer=[-2, -1])
        soundclip = patch(model, TinyEncoder(), k=K)
        with torch.no_grad():
            tokens = soundclip.visual_tokens(inputs["pixel_values"], make_sounds(2), sampling_rate=RATE)
            states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
            slot = soundclip.align(soundclip.embed(make_sounds(2), sampling_rate=RATE))
            both = model.model.multi_modal_projector(torch.cat([slot, slot], 1))
        torch.testing.assert_close(tokens[:, 0], both)
        assert len(states) == 4


class TestSounds:
    def test_every_form_of_a_sound_is_heard_alike(self, soundclip: Any, tmp_path: Any) -> None:
        import wave

        samples = (make_sounds(1)[0].numpy() * 32767).astype("<i2")
        path = tmp_path / "sound.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.tobytes())
        array = samples.astype(np.float32) / 32768
        expected = TinyEncoder().embed([array], RATE)
        forms = [str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), [path]]
        for form in forms:
            torch.testing.assert_close(soundclip.embed(form), expected)
        for form in [array, torch.tensor(array), [array], array[None].astype(np.float64)]:
            torch.testing.assert_close(soundclip.embed(form, sampling_rate=RATE), expected)

    @pytest.mark.parametrize(
        ("sounds", "rate", "error", "words"),
        [
            (np.zeros(100, np.float32), None, ValueError, "needs sampling_rate="),
            (np.zeros(0, np.float32), RATE, ValueError, "empty"),
            (np.full(100, np.nan, np.float32), RATE, ValueError, "NaN|nan|finite"),
            (np.zeros(100, np.int16), RATE, TypeError, "32768|float"),
            (np.full(100, 30_000, np.float32), RATE, ValueError, r"\[-1, 1\]"),
            (np.zeros((2, 2, 100), np.float32), RATE, ValueError, "channels"),
            ([], RATE, ValueError, "empty list"),
            (["a.wav", np.zeros(10)], RATE, ValueError, "not both"),
            (5, None, TypeError, "not int"),
            ("nowhere.wav", None, ValueError, "nowhere.wav"),
        ],
    )
    def test_a_bad_sound_is_refused_at_the_door(
        self, soundclip: Any, sounds: Any, rate: int | None, error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words), soundclip.audio(sounds, sampling_rate=rate):
            pass


class TestMistakes:
    """Refused before any work is done: the tower isn't asked."""

    @pytest.fixture(autouse=True)
    def forbid_work(self, tiny_llava: Any) -> None:
        def fail(*_: Any) -> None:
            raise AssertionError("the tower ran")

        tiny_llava.model.vision_tower.register_forward_pre_hook(fail)

    def test_numbers_of_sounds_and_images(self, soundclip: Any) -> None:
        inputs = make_inputs([1, 2])
        for call in (soundclip.model, lambda **inputs: soundclip.model.generate(**inputs, max_new_tokens=1)):
            with (
                soundclip.audio(make_sounds(2), sampling_rate=RATE),
                pytest.raises(ValueError, match="2 sounds for 3 images: give one sound per image"),
            ):
                call(**inputs)
        with (
            soundclip.audio(make_sounds(2), sampling_rate=RATE),
            pytest.raises(ValueError, match="2 images given, but the prompt has room for 3"),
        ):
            soundclip.model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]})
        with pytest.raises(ValueError, match="2 sounds for 3 images"):
            soundclip.visual_tokens(inputs["pixel_values"], make_sounds(2), sampling_rate=RATE)

    def test_k_above_the_patches(self, soundclip: Any) -> None:
        with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
            soundclip.k = PATCHES + 1
        assert soundclip.k == K
        with pytest.raises(ValueError, match="k is 9999, but an image has only 9 patches"):
            patch(soundclip.model, TinyEncoder(), k=9999)
        with pytest.raises(ValueError, match="k is 150, but an image has only 9 patches"):
            patch(soundclip.model, TinyEncoder())  # the default is no exception
        assert soundclip.is_installed

    def test_placeholders_cut_by_max_length(self, soundclip: Any) -> None:
        inputs = make_inputs([1])
        cut = {name: value[:, :7] if value.ndim == 2 else value for name, value in inputs.items()}
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(
                ValueError, match=r"run of \d image tokens, but an image is 9: were they cut by max_length"
            ),
        ):
            soundclip.model.generate(**cut, max_new_tokens=1)

    def test_no_image_for_a_sound(self, soundclip: Any) -> None:
        ids = torch.tensor([[1, 5, 6]])
        model = soundclip.model
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            with pytest.raises(ValueError, match="no image token, but 1 sound"):
                model.generate(ids, max_new_tokens=1)
            with pytest.raises(ValueError, match="needs an image"):
                model(ids)
            with pytest.raises(ValueError, match="needs an image"):
                model.generate(make_inputs([1])["input_ids"], max_new_tokens=1)

    def test_arguments_that_cannot_go_with_a_sound(self, soundclip: Any) -> None:
        inputs = make_inputs([1])
        model = soundclip.model
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            with pytest.raises(ValueError, match="inputs_embeds"):
                model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])
            with pytest.raises(ValueError, match="inputs_embeds"):
                model.generate(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])

    def test_a_model_of_another_family(self) -> None:
        with pytest.raises(
            TypeError, match="can't patch a Linear; supported are .*LlavaForConditionalGeneration"
        ):
            patch(nn.Linear(2, 2))

    def test_a_tower_without_cls(self, tiny_llava: Any) -> None:
        tiny_llava.model.vision_tower = nn.Linear(2, 2)
        with pytest.raises(TypeError, match="without a CLS token"):
            patch(tiny_llava, TinyEncoder(), k=K)

    def test_a_projector_of_something_else(self, tiny_llava: Any) -> None:
        for wrong, words in [
            ({"audio_dim": 17}, "audio_dim is 17"),
            ({"width": 33}, "width is 33"),
            ({"encoder": "clap"}, "encoder is 'clap' in the projector and 'tiny' here"),
            ({"checkpoint": "base"}, "checkpoint is 'base'"),
            ({"tower": "clip-l"}, "tower is 'clip-l'"),
            ({"tower_layer": -1}, "tower_layer is -1"),
        ]:
            options = {"audio_dim": 16, "width": WIDTH, "hidden": 8, **wrong}
            with pytest.raises(ValueError, match=words):
                patch(tiny_llava, TinyEncoder(), k=K, projector=Projector(**options), alignment="projected")
        with pytest.raises(ValueError, match="pass projector="):
            patch(tiny_llava, TinyEncoder(), k=K, alignment="projected")

    def test_a_module_that_is_no_soundclip_projector(self, tiny_llava: Any) -> None:
        for module in (tiny_llava.model.multi_modal_projector, nn.Linear(16, WIDTH)):
            with pytest.raises(
                TypeError, match=f"SoundCLIP Projector.*not a {type(module).__name__}; LLaVA's own"
            ):
                patch(tiny_llava, TinyEncoder(), k=K, projector=module, alignment="projected")

    def test_without_a_projector_a_warning_says_that_raw_vectors_are_not_heard(self, tiny_llava: Any) -> None:
        with pytest.warns(UserWarning, match="raw vectors aren't heard .*give projector=") as caught:
            patch(tiny_llava, TinyEncoder(), k=K)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for alignment in ("raw", "projected", 0.5):
                patch(tiny_llava, TinyEncoder(), k=K, projector=Projector(16, WIDTH, 8), alignment=alignment)
            with pytest.raises(UserWarning):
                patch(tiny_llava, TinyEncoder(), k=K)

    def test_a_quantised_projector(self, tiny_llava: Any) -> None:
        projector = Projector(16, WIDTH, 8)
        weight = torch.zeros(8, 8, dtype=torch.uint8)  # as bitsandbytes packs it
        projector.linear2.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(ValueError, match=r"linear2.weight is torch.uint8: it was quantised.*dtype="):
            patch(tiny_llava, TinyEncoder(), k=K, projector=projector, alignment="projected")

    def test_options_for_an_encoder_that_is_loaded(self, tiny_llava: Any) -> None:
        with pytest.raises(ValueError, match="checkpoint: options need an encoder's name"):
            patch(tiny_llava, TinyEncoder(), k=K, checkpoint="tiny")

    def test_an_unknown_encoder(self, tiny_llava: Any) -> None:
        with pytest.raises(ValueError, match="unknown encoder 'whisprclip'; known: .*whisperclip"):
            patch(tiny_llava, "whisprclip", k=K)


def test_a_deep_copy_of_a_patched_model_is_stock(soundclip: Any, inputs: Any) -> None:
    stock = generate(soundclip.model, inputs)
    twin = copy.deepcopy(soundclip.model)
    with torch.no_grad():
        twin.lm_head.weight.neg_()
    with soundclip.audio(make_sounds(2), sampling_rate=RATE):
        heard = generate(soundclip.model, inputs)
        words, negative = generate(twin, inputs), scores(twin, inputs)
    soundclip.unpatch()
    assert torch.equal(negative, -scores(soundclip.model, inputs))
    assert words not in (stock, heard)
    assert generate(soundclip.model, inputs) == stock


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": "proj"}, "alignment must be"),
        ({"tokens": "dro"}, "tokens must be one of"),
        ({"norm": "mach"}, "norm must be one of"),
        ({"projector": "nope/"}, "nope/"),
    ],
)
def test_a_wrong_option_is_found_before_the_encoder_is_loaded(monkeypatch, options, message):
    from llava_soundclip import patching

    monkeypatch.setattr(patching, "load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        patch(build_tiny_llava(), k=4, **options)
