"""docs/adding-a-host.md, tried: a family of one's own, and one that has no slot for a sound."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llava_soundclip import hosts, patch
from llava_soundclip.hosts.llava import LlavaHost
from llava_soundclip.hosts.llava_next import LlavaNextHost
from tests.conftest import IMAGE_TOKEN, TinyEncoder, build_tiny_llava, tiny_text_config
from tests.hosts import reference
from tests.hosts.families import LLAVA, NEW, RATE, K, expected_rows, make_inputs, make_sounds
from tests.test_patching import generate, scores, snapshot


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_HOSTS", dict(hosts._HOSTS))


class Eyes(nn.Module):
    """A CLIP tower behind a lens, where `LlavaHost` doesn't look for it."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        return self.clip(pixel_values.flip(-1), **options)


class EyesHost(LlavaHost):
    @property
    def vision_tower(self) -> nn.Module:
        return self.model.model.vision_tower.clip

    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        return super().tower_tokens(pixel_values.flip(-1))


def build_eyes() -> Any:
    """A user's own subclass of `LlavaForConditionalGeneration`."""
    model = build_tiny_llava()
    model.__class__ = type("EyesLlava", (type(model),), {})
    model.model.vision_tower = Eyes(model.model.vision_tower)
    return model


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["zero", "drop"])
def test_a_family_of_ones_own(tokens: str) -> None:
    hosts.register_host("EyesLlava", EyesHost)
    model = build_eyes()
    inputs, sounds = make_inputs([1, 2]), make_sounds(3)
    stock = scores(model, inputs)
    before = snapshot(model)
    rows = expected_rows(model, inputs, sounds, K, tokens, family=LLAVA)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        assert generate(model, inputs) == [reference.greedy(model, row, NEW) for row in rows]
    soundclip.unpatch()
    assert torch.equal(scores(model, inputs), stock)
    assert snapshot(model) == before
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert torch.equal(EyesHost(model).tower_tokens(inputs["pixel_values"]), states[-2])


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="a host for LlavaForConditionalGeneration is registered already"):
        hosts.register_host("LlavaForConditionalGeneration", EyesHost)


def test_llava_onevision_has_no_slot_and_the_error_says_why() -> None:
    """Its tower is a SigLIP, which has patches only: there is no CLS token for a sound to replace."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=30,
            patch_size=10,
        ),
        text_config=tiny_text_config("Qwen2"),
        image_token_index=IMAGE_TOKEN,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    with pytest.raises(
        TypeError, match="can't patch a LlavaOnevisionForConditionalGeneration; supported are"
    ):
        patch(model, TinyEncoder())
    hosts.register_host("LlavaOnevisionForConditionalGeneration", LlavaNextHost)
    with pytest.raises(TypeError, match="SiglipVisionModel without a CLS token, so a sound has no slot"):
        patch(model, TinyEncoder())
