"""Every way of loading: half precision, 8 and 4 bit, dispatched and offloaded, with adapters.

The reference runs the loaded model's own parts, so that what is compared is the wiring and not the rounding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_soundclip import patch, unpatch
from tests.conftest import TinyEncoder
from tests.hosts import reference
from tests.hosts.families import NEW, RATE, Family, K, expected_rows, make_inputs, make_sounds
from tests.test_patching import generate, scores, snapshot

pytestmark = [
    # A device for `image_newline`, a parameter beside the modules: transformers raises without one.
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules"),
    # transformers 4.57 on what is offloaded
    pytest.mark.filterwarnings(
        "ignore:You are calling .generate\\(\\) with the `input_ids` being on a device type"
    ),
]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}  # logits are about 5


def half(dtype: torch.dtype) -> Callable[[Any, Path], Any]:
    return lambda model, folder: model.to(dtype)


def reload(**options: Any) -> Callable[[Any, Path], Any]:
    def load(model: Any, folder: Path) -> Any:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder, **options).eval()
        loaded.generation_config = model.generation_config
        return loaded

    return load


def quantised(**options: Any) -> Callable[[Any, Path], Any]:
    def load(model: Any, folder: Path) -> Any:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
        from transformers import BitsAndBytesConfig

        return reload(quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32)(model, folder)

    return load


def offloaded(model: Any, folder: Path) -> Any:
    """The tower stays, the language model's weights come from the disk for each call."""
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"}
    places |= {"model.language_model": "disk", "lm_head": "disk"}
    if hasattr(model.model, "image_newline"):
        places["model.image_newline"] = "cpu"
    load = reload(device_map=places, offload_folder=str(folder / "offload"))
    return load(model, folder)


def cpu_offloaded(model: Any, folder: Path) -> Any:
    """Everything lies on `meta` between the calls, the tower and the mm_projector too."""
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device="cpu")


def adapted(model: Any, folder: Path) -> Any:
    """LoRA on the language model's attention, put in by transformers."""
    pytest.importorskip("peft", reason="needs peft")
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False)
    model.add_adapter(config)
    return model.eval()


MODES: dict[str, Callable[[Any, Path], Any]] = {
    "float16": half(torch.float16),
    "bfloat16": half(torch.bfloat16),
    # Threshold 0: else which columns count as outliers depends on the whole batch, and the reference has rows.
    "8 bit": quantised(load_in_8bit=True, llm_int8_threshold=0.0),
    "4 bit": quantised(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "disk": offloaded,
    "cpu_offload": cpu_offloaded,
    "eager": reload(attn_implementation="eager"),
    "sdpa": reload(attn_implementation="sdpa"),
    "adapter": adapted,
}


@pytest.fixture(params=MODES)
def model(request: pytest.FixtureRequest, family: Family, tmp_path: Path) -> Any:
    model = family.build()
    if request.param == "4 bit":
        request.getfixturevalue("narrow_4bit")
    if request.param == "cpu_offload" and hasattr(model.model, "image_newline"):
        pytest.skip(
            "from transformers 5.18 on, generate leaves image_newline on the meta device, patched or not"
        )
    return MODES[request.param](model, tmp_path)


def make_call(model: Any, family: Family) -> dict[str, Any]:
    inputs = make_inputs([1, 2], family=family)
    return {
        name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
    }


def test_without_a_sound_and_after_unpatch_nothing_differs(family: Family, model: Any) -> None:
    inputs = make_call(model, family)
    stock, words = scores(model, inputs), generate(model, inputs)
    before = snapshot(model)
    soundclip = patch(model, TinyEncoder(), k=K)
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        assert generate(model, inputs) != words
    soundclip.unpatch()
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    assert snapshot(model) == before


@pytest.mark.parametrize("tokens", ["zero", "drop"])
@torch.no_grad()
def test_with_a_sound_it_is_the_model_put_together_by_hand(family: Family, model: Any, tokens: str) -> None:
    inputs, sounds = make_call(model, family), make_sounds(3)
    rows = expected_rows(model, inputs, sounds, K, tokens, family=family)
    expected = [reference.logits(model, row.to(model.dtype)) for row in rows]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**inputs).logits
        new = generate(model, inputs)
    tolerance = TOLERANCE[model.dtype]
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[-len(want) :].float(), want.float(), rtol=tolerance, atol=tolerance)
    assert len(new[0]) == NEW


@torch.no_grad()
def test_an_adapter_that_comes_after_the_patch_is_heard_through(family: Family) -> None:
    pytest.importorskip("peft", reason="needs peft")
    model = family.build()
    inputs, sounds = make_call(model, family), make_sounds(3)
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(sounds, sampling_rate=RATE):
        without = scores(model, inputs)
    adapted(model, Path())
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert not torch.allclose(scores(model, inputs), without)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = scores(model, inputs)
    for row, want in zip(output, expected_rows(model, inputs, sounds, K, "zero", family=family), strict=True):
        want = reference.logits(model, want)
        torch.testing.assert_close(row[-len(want) :], want, rtol=1e-4, atol=1e-4)
    soundclip.unpatch()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@torch.no_grad()
def test_a_model_in_pefts_wrapper_is_patched_inside_it(family: Family) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    inputs, sounds = make_call(model := family.build(), family), make_sounds(3)
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config).eval()
    stock, words = scores(wrapped, inputs), generate(wrapped, inputs)
    soundclip = patch(wrapped, TinyEncoder(), k=K)
    assert soundclip.model is model
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output, heard = scores(wrapped, inputs), generate(wrapped, inputs)
    rows = expected_rows(model, inputs, sounds, K, "zero", family=family)
    for row, want, new in zip(output, rows, heard, strict=True):
        want_scores = reference.logits(model, want)
        torch.testing.assert_close(row[-len(want) :], want_scores, rtol=1e-4, atol=1e-4)
        assert new == reference.greedy(model, want, NEW)
    unpatch(wrapped)
    assert torch.equal(scores(wrapped, inputs), stock) and generate(wrapped, inputs) == words
