"""LLaVA-1.5 from the outside: what users already do, with a sound, against a LLaVA put together by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llava_soundclip import patch
from tests.conftest import IMAGE_TOKEN, PAD, PATCHES, TinyEncoder, build_tiny_llava
from tests.hosts import reference

K = 4
NEW = 6
RATE = 16_000


def make_inputs(images: list[int], *, seed: int = 0, stock: int = PATCHES) -> dict[str, Tensor]:
    """A left-padded batch with so many images in each row, words between them."""
    generator = torch.Generator().manual_seed(seed)

    def words(n: int) -> list[int]:
        return torch.randint(3, 90, (n,), generator=generator).tolist()

    rows = []
    for row, count in enumerate(images):
        ids = [1, *words(2 + row)]
        for _ in range(count):
            ids += [IMAGE_TOKEN] * stock + words(1)
        rows.append(ids + words(3))
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    pixel_values = torch.randn(sum(images), 3, 30, 30, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixel_values}


def make_sounds(n: int, *, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(20, generator=generator) * 2 - 1 for _ in range(n)]


def expected_rows(
    model: Any, inputs: dict[str, Tensor], sounds: list[Tensor], k: int, tokens: str
) -> list[Tensor]:
    """The prompt of each row as embeddings, made by hand."""
    embeddings = TinyEncoder().embed(sounds, RATE)
    visual = reference.hear(model, inputs["pixel_values"], embeddings, k, tokens)
    stock = PATCHES + (model.config.vision_feature_select_strategy == "full")
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[mask.bool()].tolist()
        images = ids.count(IMAGE_TOKEN) // stock
        rows.append(reference.prompt_embeddings(model, ids, visual[:images], stock))
        visual = visual[images:]
    return rows


@pytest.fixture(params=["default", "full"])
def model(request: pytest.FixtureRequest) -> Any:
    return build_tiny_llava(strategy=request.param)


def stock_tokens(model: Any) -> int:
    return PATCHES + (model.config.vision_feature_select_strategy == "full")


@pytest.fixture(params=["zero", "drop"])
def tokens(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("images", [[1], [1, 1], [2], [1, 2], [3, 1, 2]], ids=str)
@torch.no_grad()
def test_generate_equals_the_model_put_together_by_hand(model: Any, tokens: str, images: list[int]) -> None:
    inputs, sounds = make_inputs(images, stock=stock_tokens(model)), make_sounds(sum(images))
    rows = expected_rows(model, inputs, sounds, K, tokens)
    expected = [reference.greedy(model, row, NEW) for row in rows]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :length], inputs["input_ids"])
    assert output[:, length:].tolist() == expected


@torch.no_grad()
def test_forward_equals_the_model_put_together_by_hand(model: Any, tokens: str) -> None:
    inputs, sounds = make_inputs([1, 2], stock=stock_tokens(model)), make_sounds(3)
    expected = [reference.logits(model, row) for row in expected_rows(model, inputs, sounds, K, tokens)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model(**inputs).logits
    assert output.shape[1] == max(map(len, expected))
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[-len(want) :], want, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[[1], [2, 1]], ids=str)
def images(request: pytest.FixtureRequest) -> list[int]:
    return request.param


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
    tokens: str, images: list[int], options: dict[str, Any]
) -> None:
    """Any way of decoding: the same new tokens as transformers gives from prompt embeddings made by hand."""
    model = build_tiny_llava()
    inputs, sounds = make_inputs(images), make_sounds(sum(images))
    rows = expected_rows(model, inputs, sounds, K, tokens)
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
