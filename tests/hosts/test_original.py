"""The original `llava` package, with a sound, against the same model put together by hand from its parts."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from llava_soundclip import patch
from tests.conftest import PAD, WIDTH, TinyEncoder
from tests.hosts.reference import algorithm_1, pad_or_cut

pytest.importorskip(
    "llava.model.language_model.llava_llama",
    reason="needs the original package: pip install --no-deps llava-torch==1.2.2.post1",
)

IMAGE = -200
K = 4
NEW = 6
RATE = 16_000


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP tower of three layers as a folder, which is how the original package wants it."""
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=30,
        patch_size=10,
    )
    torch.manual_seed(0)
    randomize(CLIPVisionModel(config)).save_pretrained(folder)
    size = {"height": 30, "width": 30}
    CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=size).save_pretrained(folder)
    return folder


def randomize(model: Any) -> Any:
    """Fresh weights are tiny: every token would look alike, and every caption would be the same."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
            elif name.endswith(("class_embedding", "image_newline")):
                parameter.normal_(0, 1)
    return model


def model_class(name: str) -> Any:
    """The package's class; before transformers 5 with what its users add to it for `generate` to run."""
    module = import_module(f"llava.model.language_model.llava_{name.lower()}")
    base = getattr(module, f"Llava{name}ForCausalLM")

    class Repaired(base):
        def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):  # type: ignore
            inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
            inputs.pop("cache_position", None)
            return inputs

    return Repaired


def build_model(clip_folder: Path, name: str = "Llama", **options: Any) -> Any:
    """A random model of two layers: 9 patches, 100 words. Options go into its config."""
    torch.manual_seed(1)
    cls = model_class(name)
    config = cls.config_class(
        **{
            "vocab_size": 100,
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "mm_vision_tower": str(clip_folder),
            "mm_hidden_size": WIDTH,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_patch_merge_type": "flat",
            "image_aspect_ratio": "pad",
            **options,
        }
    )
    model = randomize(cls(config)).eval()
    model.get_vision_tower().load_model()
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=["zero", "drop"])
def tokens(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(clip_folder: Path) -> Any:
    return build_model(clip_folder)


def make_prompt(images: list[int], *, seed: int = 0, side: str = "right") -> dict[str, Tensor]:
    """A padded batch with so many image tokens in each row, words between them."""
    generator = torch.Generator().manual_seed(seed)

    def words(n: int) -> list[int]:
        return torch.randint(3, 98, (n,), generator=generator).tolist()

    rows = []
    for row, count in enumerate(images):
        ids = [1, *words(2 + row)]
        for _ in range(count):
            ids += [IMAGE, *words(1)]
        rows.append(ids + words(2))
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def make_pixels(n: int, *, seed: int = 2) -> Tensor:
    return torch.randn(n, 3, 30, 30, generator=torch.Generator().manual_seed(seed))


def make_sounds(n: int, *, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(20, generator=generator) * 2 - 1 for _ in range(n)]


# By hand


def heard_tile(model: Any, tile: Tensor, sound: Tensor) -> tuple[Tensor, list[int]]:
    """One picture of one image: (N+1, hidden) visual tokens with zeros, and the patches that are kept."""
    layers = model.get_vision_tower().vision_tower(tile[None], output_hidden_states=True).hidden_states
    embedding = TinyEncoder().embed([sound], RATE)[0]
    edited, kept = algorithm_1(layers[-2][0], pad_or_cut(embedding, WIDTH), K)
    return model.get_model().mm_projector(edited), kept


def heard_image(model: Any, tile: Tensor, sound: Tensor, tokens: str) -> Tensor:
    """(N+1, hidden) or (k+1, hidden)."""
    visual, kept = heard_tile(model, tile, sound)
    return visual if tokens == "zero" else visual[[0, *(i + 1 for i in kept)]]


def prompt_rows(model: Any, prompt: dict[str, Tensor], visual: list[Tensor]) -> list[Tensor]:
    """(L', hidden) of each row: the words, and each image's visual tokens where its image token was."""
    rows, images = [], iter(visual)
    for ids, mask in zip(prompt["input_ids"], prompt["attention_mask"], strict=True):
        pieces = [
            next(images) if word == IMAGE else model.get_model().embed_tokens(torch.tensor([word]))
            for word in ids[mask.bool()].tolist()
        ]
        rows.append(torch.cat(pieces))
    return rows


def logits(model: Any, row: Tensor) -> Tensor:
    """(L', vocabulary), without padding or cache."""
    return model.lm_head(model.get_model()(inputs_embeds=row[None], use_cache=False).last_hidden_state)[0]


def greedy(model: Any, row: Tensor) -> list[int]:
    generated = []
    for _ in range(NEW):
        best = int(logits(model, row)[-1].argmax())
        generated.append(best)
        row = torch.cat([row, model.get_model().embed_tokens(torch.tensor([best]))])
    return generated


# One picture an image


@pytest.mark.parametrize("images", [[1], [1, 1], [2], [3, 1, 2]], ids=str)
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
@torch.no_grad()
def test_generate_equals_the_model_put_together_by_hand(
    clip_folder: Path, name: str, feature: str, tokens: str, images: list[int]
) -> None:
    model = build_model(clip_folder, name, mm_vision_select_feature=feature, tokenizer_padding_side="left")
    prompt, pixels, sounds = make_prompt(images), make_pixels(sum(images)), make_sounds(sum(images))
    visual = [heard_image(model, *pair, tokens) for pair in zip(pixels, sounds, strict=True)]
    expected = [greedy(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(
            prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            images=pixels,
            max_new_tokens=NEW,
            do_sample=False,
        )
    assert output.tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_forward_equals_the_model_put_together_by_hand(clip_folder: Path, tokens: str, side: str) -> None:
    model = build_model(clip_folder, tokenizer_padding_side=side)
    prompt, pixels, sounds = make_prompt([1, 2], side=side), make_pixels(3), make_sounds(3)
    visual = [heard_image(model, *pair, tokens) for pair in zip(pixels, sounds, strict=True)]
    expected = [logits(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model(**prompt, images=pixels).logits
    assert output.shape[1] == max(map(len, expected))
    for row, want in zip(output, expected, strict=True):
        row = row[-len(want) :] if side == "left" else row[: len(want)]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)
