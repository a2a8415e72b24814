"""The original `llava` package, with a sound, against the same model put together by hand from its parts."""

import copy
import runpy
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationMixin,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from llava_soundclip import Projector, patch
from tests.conftest import PAD, PATCHES, WIDTH, TinyEncoder
from tests.encoders import fake_whisper
from tests.hosts.reference import algorithm_1, pad_or_cut, read_up_to
from tests.media.making import write_film
from tests.test_patching import snapshot

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


def build_model(clip_folder: Path, name: str = "Llama", *, cls: Any = None, **options: Any) -> Any:
    """A random model of two layers: 9 patches, 100 words. Options go into its config."""
    torch.manual_seed(1)
    cls = cls or model_class(name)
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


class Picture(NamedTuple):
    """A picture in tiles: its (width, height), and how many tiles it is wide and high."""

    size: tuple[int, int]
    wide: int
    high: int

    def tiles(self, *, seed: int = 2) -> Tensor:
        """The base tile and the others, (1 + wide * high, 3, 30, 30)."""
        return make_pixels(1 + self.wide * self.high, seed=seed)


PINPOINTS = [[30, 60], [60, 30], [60, 60]]
PICTURES = [
    Picture((40, 60), 2, 2),  # unpadding cuts a column on either side
    Picture((60, 10), 2, 1),  # and here it leaves a row of three, fewer patches than K
    Picture((20, 55), 1, 2),  # and here nothing is cut
]


# By hand


def visible(size: tuple[int, int], wide: int, high: int) -> tuple[range, range]:
    """Rows and columns of patches that unpadding leaves of so many tiles of 3 x 3."""
    (width, height), rows, columns = size, 3 * high, 3 * wide
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return range(cut, rows - cut), range(columns)
    cut = (columns - int(width * (rows / height))) // 2
    return range(rows), range(cut, columns - cut)


def heard_tiles(
    model: Any, tiles: Tensor, sound: Tensor, picture: Picture, tokens: str, *, unpad: bool = True
) -> Tensor:
    """(tokens, hidden) of an image in tiles, in the order that the module's docstring gives."""
    rows, columns = range(3 * picture.high), range(3 * picture.wide)
    if unpad and len(tiles) > 1:
        rows, columns = visible(picture.size, picture.wide, picture.high)
    grid = [[(1 + r // 3 * picture.wide + c // 3, r % 3 * 3 + c % 3) for c in columns] for r in rows]
    grid = grid or [[]]  # an image of one tile ends with a newline, too
    base = [(0, place) for place in range(PATCHES)]
    places = base + [place for row in grid for place in row]
    layers = model.get_vision_tower().vision_tower(tiles, output_hidden_states=True).hidden_states
    audio = pad_or_cut(TinyEncoder().embed([sound], RATE)[0], WIDTH)
    slots, patches = [], {}
    for i, tile in enumerate(layers[-2]):
        candidates = [place for place in range(PATCHES) if (i, place) in places]
        edited, kept = algorithm_1(tile[[0, *(p + 1 for p in candidates)]], audio, min(K, len(candidates)))
        slots.append(edited[0])
        for j, place in enumerate(candidates):
            if tokens == "zero" or j in kept:
                patches[i, place] = edited[j + 1]
    project = model.get_model().mm_projector
    read = [project(slots[0])]
    read += [project(patches[place]) for place in base if place in patches]
    read += [project(slot) for slot in slots[1:]]
    for row in grid:
        read += [project(patches[place]) for place in row if place in patches]
        if unpad:
            read.append(model.get_model().image_newline)
    return torch.stack(read)


def heard_image(model: Any, pixels: Tensor, sound: Tensor, tokens: str, k: int = K) -> Tensor:
    """(N+1, hidden) or (k+1, hidden) of an image in one piece."""
    layers = model.get_vision_tower().vision_tower(pixels[None], output_hidden_states=True).hidden_states
    audio = pad_or_cut(TinyEncoder().embed([sound], RATE)[0], WIDTH)
    edited, kept = algorithm_1(layers[-2][0], audio, k)
    if tokens == "drop":
        edited = edited[[0, *(place + 1 for place in kept)]]
    return model.get_model().mm_projector(edited)


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


def heard_rows(
    model: Any, prompt: dict[str, Tensor], pixels: Tensor, sounds: list[Tensor], tokens: str
) -> Any:
    visual = [heard_image(model, *pair, tokens) for pair in zip(pixels, sounds, strict=True)]
    return prompt_rows(model, prompt, visual)


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
    expected = [greedy(model, row) for row in heard_rows(model, prompt, pixels, sounds, tokens)]
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
    expected = [logits(model, row) for row in heard_rows(model, prompt, pixels, sounds, tokens)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=pixels).logits
    assert output.shape[1] == max(map(len, expected))
    for row, want in zip(output, expected, strict=True):
        row = row[-len(want) :] if side == "left" else row[: len(want)]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"use_cache": False},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda options: "-".join(options),
)
@torch.no_grad()
def test_generate_options_equal_generation_from_the_embeddings(
    clip_folder: Path, tokens: str, options: dict[str, Any]
) -> None:
    """Any way of decoding: the same new tokens as transformers gives from prompt embeddings made by hand."""
    model = build_model(clip_folder, tokenizer_padding_side="left")
    prompt, pixels, sounds = make_prompt([2, 1]), make_pixels(3), make_sounds(3)
    rows = heard_rows(model, prompt, pixels, sounds, tokens)
    length = max(map(len, rows))
    embeddings = torch.stack([nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    options = {"max_new_tokens": NEW, **options}
    torch.manual_seed(5)
    expected = GenerationMixin.generate(model, inputs_embeds=embeddings, attention_mask=mask, **options)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    torch.manual_seed(5)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(
            prompt["input_ids"], attention_mask=prompt["attention_mask"], images=pixels, **options
        )
    if "return_dict_in_generate" in options:
        assert output.past_key_values.get_seq_length() == length + NEW - 1
        output, expected = output.sequences, expected.sequences
    assert torch.equal(output, expected)


@pytest.mark.parametrize("k", [0, PATCHES])
@torch.no_grad()
def test_the_smallest_and_the_largest_k(model: Any, tokens: str, k: int) -> None:
    pixels, sounds = make_pixels(2), make_sounds(2)
    soundclip = patch(model, TinyEncoder(), k=k, tokens=tokens)
    visual = soundclip.visual_tokens(pixels, sounds, sampling_rate=RATE)
    for pixel, sound, got in zip(pixels, sounds, visual, strict=True):
        torch.testing.assert_close(got, heard_image(model, pixel, sound, tokens, k), rtol=1e-4, atol=1e-4)


def test_labels_and_gradients(model: Any, tokens: str) -> None:
    """The words are predicted, the visual tokens are not; a gradient reaches the sound's projector."""
    prompt, pixels, sounds = make_prompt([1, 1]), make_pixels(2), make_sounds(2)
    labels = prompt["input_ids"].masked_fill(prompt["attention_mask"] == 0, -100)
    losses = []
    with torch.no_grad():
        rows = heard_rows(model, prompt, pixels, sounds, tokens)
        for row, ids, mask in zip(rows, prompt["input_ids"], prompt["attention_mask"], strict=True):
            ids, scores = ids[mask.bool()], logits(model, row)
            image = ids.tolist().index(IMAGE)
            before, after = ids[1:image], ids[image + 1 :]
            losses += nn.functional.cross_entropy(scores[: len(before)], before, reduction="none")
            losses += nn.functional.cross_entropy(scores[-len(after) - 1 : -1], after, reduction="none")
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        loss = model(**prompt, images=pixels, labels=labels).loss
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    projector = Projector(16, WIDTH, 8)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens, projector=projector, alignment="projected")
    with soundclip.audio(sounds, sampling_rate=RATE):
        model(**prompt, images=pixels, labels=labels).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters())


@torch.no_grad()
def test_mpt(clip_folder: Path, tokens: str) -> None:
    """The package's own forward stops with a TypeError, sound or not: it leaves position_ids out of a call."""
    module = pytest.importorskip("llava.model.language_model.llava_mpt")

    class Repaired(module.LlavaMptForCausalLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Any:
            _, _, mask, _, embeddings, _ = self.prepare_inputs_labels_for_multimodal(
                input_ids, None, attention_mask, None, None, images
            )
            return MptForCausalLM.forward(self, attention_mask=mask, inputs_embeds=embeddings)

    model = build_model(clip_folder, cls=Repaired)
    prompt, pixels, sounds = make_prompt([1, 2]), make_pixels(3), make_sounds(3)
    expected = [logits(model, row) for row in heard_rows(model, prompt, pixels, sounds, tokens)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=pixels).logits
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_without_an_image_token_has_an_image_that_is_skipped(model: Any, tokens: str) -> None:
    prompt, pixels, sounds = make_prompt([1, 0, 1]), make_pixels(3), make_sounds(3)
    visual = [heard_image(model, *pair, tokens) for pair in zip(pixels, sounds, strict=True)]
    rows = prompt_rows(model, prompt, [visual[0], visual[2]])
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=pixels).logits
    for got, row in zip(output, rows, strict=True):
        torch.testing.assert_close(got[: len(row)], logits(model, row), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prompt_longer_than_the_tokenizers_is_cut(clip_folder: Path, tokens: str) -> None:
    """As stock code cuts: embeddings from the end on."""
    model = build_model(clip_folder, tokenizer_model_max_length=7)
    prompt, pixels, sounds = make_prompt([1]), make_pixels(1), make_sounds(1)
    [row] = heard_rows(model, prompt, pixels, sounds, tokens)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=pixels).logits
    torch.testing.assert_close(output[0], logits(model, row[:7]), rtol=1e-4, atol=1e-4)


# Images in tiles


def build_anyres(clip_folder: Path, merge: str, **options: Any) -> Any:
    options = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS, **options}
    return build_model(clip_folder, mm_patch_merge_type=merge, **options)


@pytest.mark.parametrize("merge", ["spatial_unpad", "spatial"])
@pytest.mark.parametrize("images", [[1], [2, 1]], ids=str)
@torch.no_grad()
def test_generate_from_tiles_equals_the_model_put_together_by_hand(
    clip_folder: Path, merge: str, tokens: str, images: list[int]
) -> None:
    model = build_anyres(clip_folder, merge, tokenizer_padding_side="left")
    pictures, sounds = PICTURES[: sum(images)], make_sounds(sum(images))
    prompt, tiles = make_prompt(images), [picture.tiles() for picture in pictures]
    unpad = merge == "spatial_unpad"
    visual = [
        heard_tiles(model, *parts, tokens, unpad=unpad) for parts in zip(tiles, sounds, pictures, strict=True)
    ]
    expected = [greedy(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model.generate(
            prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            images=tiles,
            image_sizes=[picture.size for picture in pictures],
            max_new_tokens=NEW,
            do_sample=False,
        )
    assert output.tolist() == expected


@torch.no_grad()
def test_forward_of_tiles_equals_the_model_put_together_by_hand(clip_folder: Path, tokens: str) -> None:
    model = build_anyres(clip_folder, "spatial_unpad", mm_vision_select_feature="patch")
    sounds, prompt = make_sounds(3), make_prompt([1, 2])
    tiles = [picture.tiles() for picture in PICTURES]
    visual = [heard_tiles(model, *parts, tokens) for parts in zip(tiles, sounds, PICTURES, strict=True)]
    expected = [logits(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=tiles, image_sizes=[picture.size for picture in PICTURES]).logits
    assert output.shape[1] == max(map(len, expected))
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_of_one_tile_beside_others(clip_folder: Path, tokens: str) -> None:
    model = build_anyres(clip_folder, "spatial_unpad")
    single = Picture((30, 30), 0, 0)
    pictures, sounds, prompt = [single, PICTURES[0]], make_sounds(2), make_prompt([1, 1])
    tiles = [picture.tiles() for picture in pictures]
    visual = [heard_tiles(model, *parts, tokens) for parts in zip(tiles, sounds, pictures, strict=True)]
    expected = [logits(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        images = [tiles[0][0], tiles[1]]  # the stock code takes (3, H, W) as one tile
        output = model(**prompt, images=images, image_sizes=[picture.size for picture in pictures]).logits
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_flat_tiles_follow_one_another_each_with_its_slot(clip_folder: Path, tokens: str) -> None:
    model = build_anyres(clip_folder, "flat")
    sounds, prompt = make_sounds(2), make_prompt([1, 1])
    images = torch.stack([make_pixels(3, seed=seed) for seed in (2, 3)])
    visual = [
        torch.cat([heard_image(model, tile, sound, tokens) for tile in tiles])
        for tiles, sound in zip(images, sounds, strict=True)
    ]
    expected = [logits(model, row) for row in prompt_rows(model, prompt, visual)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=images).logits
    for row, want in zip(output, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tiles_are_cut_with_the_prompt_after_what_is_dropped(clip_folder: Path, tokens: str) -> None:
    model = build_anyres(clip_folder, "spatial_unpad", tokenizer_model_max_length=30)
    picture, sounds, prompt = PICTURES[0], make_sounds(1), make_prompt([1])
    visual = heard_tiles(model, picture.tiles(), sounds[0], picture, tokens)
    [row] = prompt_rows(model, prompt, [visual])
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE, raw_logits=True):
        output = model(**prompt, images=[picture.tiles()], image_sizes=[picture.size]).logits
    torch.testing.assert_close(output[0], logits(model, row[:30]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_visual_tokens_of_tiles(clip_folder: Path, tokens: str) -> None:
    model = build_anyres(clip_folder, "spatial_unpad")
    picture, sounds = PICTURES[0], make_sounds(2)
    images = torch.stack([picture.tiles(seed=seed) for seed in (2, 3)])
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    sizes = [picture.size] * 2
    visual = soundclip.visual_tokens(images, sounds, image_sizes=sizes, sampling_rate=RATE)
    for tiles, sound, got in zip(images, sounds, visual, strict=True):
        expected = heard_tiles(model, tiles, sound, picture, tokens)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# Beside other work


def pad_inputs() -> dict[str, Any]:
    return {**make_prompt([1, 2]), "images": make_pixels(3)}


def anyres_inputs() -> dict[str, Any]:
    images = [picture.tiles() for picture in PICTURES]
    return {**make_prompt([1, 2]), "images": images, "image_sizes": [picture.size for picture in PICTURES]}


def scores(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    inputs = dict(inputs)
    return model.generate(
        inputs.pop("input_ids"), **inputs, max_new_tokens=NEW, do_sample=False, **options
    ).tolist()


@pytest.mark.parametrize(
    "inputs, merge", [(pad_inputs, "flat"), (anyres_inputs, "flat"), (anyres_inputs, "spatial_unpad")]
)
def test_without_a_sound_and_after_unpatch_nothing_differs(
    clip_folder: Path, inputs: Any, merge: str, tokens: str
) -> None:
    model, inputs = build_anyres(clip_folder, merge, tokenizer_padding_side="left"), inputs()
    stock, words = scores(model, inputs), generate(model, inputs)
    before = snapshot(model)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        heard, heard_words = scores(model, inputs), generate(model, inputs)
    assert heard.shape == stock.shape and not torch.equal(heard, stock) and heard_words != words
    clone = copy.deepcopy(model)
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        assert torch.equal(scores(clone, inputs), stock) and generate(clone, inputs) == words
        assert torch.equal(scores(model, inputs), heard)
    soundclip.unpatch()
    assert torch.equal(scores(model, inputs), stock) and generate(model, inputs) == words
    assert snapshot(model) == before


def stock_lengths(model: Any, inputs: dict[str, Any]) -> list[int]:
    """The number of tokens of each image in a stock prompt."""
    lengths = []
    for image, size in zip(inputs["images"], inputs.get("image_sizes", [None] * 9), strict=False):
        ids, image = torch.tensor([[IMAGE, 0]]), image[None] if image.ndim == 3 else [image]
        *_, embeddings, _ = model.prepare_inputs_labels_for_multimodal(
            ids, None, None, None, None, image, [size]
        )
        lengths.append(embeddings.shape[1] - 1)
    return lengths


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "inputs, merge", [(pad_inputs, "flat"), (anyres_inputs, "flat"), (anyres_inputs, "spatial_unpad")]
)
@torch.no_grad()
def test_logits_stand_in_the_places_of_the_stock_prompt(
    clip_folder: Path, inputs: Any, merge: str, tokens: str, side: str
) -> None:
    model, inputs = build_anyres(clip_folder, merge, tokenizer_padding_side=side), inputs()
    lengths, stock = stock_lengths(model, inputs), scores(model, inputs)
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        got = model(**inputs)
        visual = [
            len(image)
            for image in (
                soundclip.visual_tokens(image[None], sound, sampling_rate=RATE, image_sizes=size)[0]
                for image, sound, size in zip(
                    inputs["images"],
                    make_sounds(3),
                    [[size] for size in inputs.get("image_sizes", [])] or [None] * 3,
                    strict=True,
                )
            )
        ]
        if merge == "flat" and "image_sizes" in inputs:  # `visual_tokens` has them tile by tile
            visual = [len(image) * (PATCHES + 1 if tokens == "zero" else K + 1) for image in inputs["images"]]
    with soundclip.audio(make_sounds(3), sampling_rate=RATE, raw_logits=True):
        raw = model(**inputs)
    assert got.logits.shape == stock.shape
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        ids = ids[mask.bool()].tolist()
        images = ids.count(IMAGE)
        prompt: list[int] = []
        left = list(lengths)
        for i in ids:
            prompt += [IMAGE] * left.pop(0) if i == IMAGE else [i]
        read = read_up_to(prompt, visual[:images], lengths[:images], image=IMAGE)
        lengths, visual = lengths[images:], visual[images:]
        total = read[-1] + 1
        mine = got.logits[row, -len(read) :] if side == "left" else got.logits[row, : len(read)]
        every = raw.logits[row, -total:] if side == "left" else raw.logits[row, :total]
        assert torch.equal(mine, every[read])


@torch.no_grad()
def test_a_decode_loop_of_ones_own_counts_the_stock_prompt(model: Any, tokens: str) -> None:
    inputs, sounds = {**make_prompt([1]), "images": make_pixels(1)}, make_sounds(1)
    [row] = heard_rows(model, make_prompt([1]), make_pixels(1), sounds, tokens)
    length = scores(model, inputs).shape[1]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    for with_mask in (False, True):
        words: list[int] = []
        with soundclip.audio(sounds, sampling_rate=RATE):
            output = model(**inputs, use_cache=True)
            while len(words) < NEW:
                assert output.past_key_values.get_seq_length() == length + len(words)
                words.append(int(output.logits[0, -1].argmax()))
                mask = torch.ones(1, length + len(words), dtype=torch.long) if with_mask else None
                output = model(
                    torch.tensor([words[-1:]]),
                    attention_mask=mask,
                    past_key_values=output.past_key_values,
                    use_cache=True,
                )
        assert words == greedy(model, row)


@pytest.mark.parametrize("kind", ["tuples", "embeddings"])
@torch.no_grad()
def test_a_decode_loop_on_tuples_or_embeddings(model: Any, tokens: str, kind: str) -> None:
    inputs, sounds = {**make_prompt([1]), "images": make_pixels(1)}, make_sounds(1)
    [row] = heard_rows(model, make_prompt([1]), make_pixels(1), sounds, tokens)
    stock = model(**inputs, use_cache=True, return_dict=False)
    length, words = stock[0].shape[1], list[int]()
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        given: dict[str, Any] = inputs
        for _ in range(NEW):
            output = model(**given, use_cache=True, return_dict=kind != "tuples")
            values = output if kind == "tuples" else output.to_tuple()
            assert len(values) == len(stock) and values[1].get_seq_length() == length + len(words)
            words.append(int(values[0][0, -1].argmax()))
            next_word = torch.tensor([words[-1:]])
            mask = torch.ones(1, length + len(words), dtype=torch.long)
            given = {"attention_mask": mask, "past_key_values": values[1]}
            if kind == "tuples":
                given["input_ids"] = next_word
            else:
                given["inputs_embeds"] = model.get_model().embed_tokens(next_word)
    assert words == greedy(model, row)


@torch.no_grad()
def test_a_decode_loop_of_a_batch_that_is_padded_left(clip_folder: Path, tokens: str) -> None:
    model = build_model(clip_folder, tokenizer_padding_side="left")
    prompt, sounds = make_prompt([1, 2], side="left"), make_sounds(3)
    expected = [greedy(model, row) for row in heard_rows(model, prompt, make_pixels(3), sounds, tokens)]
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(sounds, sampling_rate=RATE):
        output = model(**prompt, images=make_pixels(3), use_cache=True)
        mask = torch.zeros(output.logits.shape[:2], dtype=torch.long)
        for row, ids in enumerate(prompt["input_ids"]):
            images = int((ids == IMAGE).sum())
            mask[row, -int(prompt["attention_mask"][row].sum()) - images * (PATCHES - 1) :] = 1
        words = []
        for _ in range(NEW):
            words.append(output.logits[:, -1:].argmax(-1))
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
            output = model(words[-1], attention_mask=mask, past_key_values=output.past_key_values)
    assert torch.cat(words, 1).tolist() == expected


@torch.no_grad()
def test_attentions_stand_in_the_places_of_the_stock_prompt(clip_folder: Path, tokens: str) -> None:
    model = build_model(clip_folder)
    model.set_attn_implementation("eager")
    inputs = {**make_prompt([1]), "images": make_pixels(1)}
    stock = model(**inputs, output_attentions=True).attentions
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        heard = model(**inputs, output_attentions=True).attentions
    for got, want in zip(heard, stock, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got.sum(-1), want.sum(-1))


@pytest.mark.parametrize("call", [scores, generate])
def test_a_method_of_ones_own_that_doesnt_hear(model: Any, tokens: str, call: Any) -> None:
    """An instance's `encode_images` that is replaced after the patch."""
    inputs = {**make_prompt([1]), "images": make_pixels(1)}
    stock = torch.as_tensor(call(model, inputs))
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    core = model.get_model()
    model.encode_images = lambda images: core.mm_projector(core.get_vision_tower()(images))
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        with pytest.raises(RuntimeError, match="a method of the model was replaced after the patch"):
            call(model, inputs)
        with soundclip.silence():
            assert torch.equal(torch.as_tensor(call(model, inputs)), stock)


@torch.no_grad()
def test_lengths_count_the_stock_prompt(model: Any, tokens: str) -> None:
    inputs = {**make_prompt([1]), "images": make_pixels(1)}
    length = scores(model, inputs).shape[1]
    for option in ("argument", "config"):
        options: dict[str, Any] = {"max_length": length + 3} if option == "argument" else {}
        model.generation_config.max_length = length + 4
        ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k != "input_ids"}
        stock = model.generate(ids, **rest, **options).shape[1]
        assert stock == 3 + (option == "config")
        soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            assert model.generate(ids, **rest, **options).shape[1] == stock
        soundclip.unpatch()


def test_a_prompt_of_words_alone_after_the_sound(model: Any) -> None:
    ids = torch.tensor([[1, 5, 6]])
    stock = generate(model, {"input_ids": ids})
    soundclip = patch(model, TinyEncoder(), k=K)
    with soundclip.audio(make_sounds(3), sampling_rate=RATE):
        generate(model, pad_inputs())
    assert generate(model, {"input_ids": ids}) == stock


def test_a_streamer_in_a_thread(model: Any, tokens: str) -> None:
    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(f"{int(i)} " for i in ids)

    inputs = {**make_prompt([1]), "images": make_pixels(1)}
    soundclip = patch(model, TinyEncoder(), k=K, tokens=tokens)
    stock = generate(model, inputs)
    with soundclip.audio(make_sounds(1), sampling_rate=RATE):
        [expected] = generate(model, inputs)
        streamer = TextIteratorStreamer(Words(), timeout=60)
        options = {"streamer": streamer, "max_new_tokens": NEW, "do_sample": False}
        ids = inputs.pop("input_ids")
        thread = threading.Thread(target=model.generate, args=(ids,), kwargs={**inputs, **options})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert [int(word) for word in text.split()] == expected != stock[0]


def test_two_threads_hear_two_sounds(clip_folder: Path) -> None:
    model, inputs = build_anyres(clip_folder, "spatial_unpad"), anyres_inputs()
    soundclip = patch(model, TinyEncoder(), k=K)
    sounds = [make_sounds(3, seed=seed) for seed in (3, 4)]
    alone = []
    for several in sounds:
        with soundclip.audio(several, sampling_rate=RATE):
            alone.append(scores(model, inputs))
    assert not torch.equal(*alone)
    ready, same = threading.Barrier(2), [False, False]

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


@torch.no_grad()
def test_what_a_projector_and_a_map_are_told(model: Any) -> None:
    soundclip = patch(model, TinyEncoder(), k=K)
    host, pixels = soundclip.host, make_pixels(2)
    layers = model.get_vision_tower().vision_tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(host.tower_tokens(pixels), layers[-2])
    assert (host.tower, host.tower_layer) == ("clip_vision_model-w32-l3-p10-i30", -2)
    assert (host.width, host.grid) == (WIDTH, (3, 3))


@pytest.mark.skipif(
    int(transformers.__version__[0]) < 5,
    reason="before transformers 5 the package's generate stops with a TypeError",
)
@pytest.mark.parametrize("aspect", ["pad", "anyres"])
def test_the_example_runs_on_a_folder_as_the_package_saves_it(
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    aspect: str,
) -> None:
    folder = tmp_path / "llava-tiny"
    merge = {"pad": "flat", "anyres": "spatial_unpad"}[aspect]
    model = build_anyres(clip_folder, merge, image_aspect_ratio=aspect, mm_use_im_patch_token=False)
    model.save_pretrained(folder)
    words = {"<unk>": PAD, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 100)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    whisper = fake_whisper.write_openai(tmp_path / "whisper.pt", fake_whisper.weights())
    film = write_film(tmp_path / "bark.mp4")
    Image.new("RGB", (40, 60), "orange").save(tmp_path / "dog.png")
    command = f"original_llava.py {film} {tmp_path / 'dog.png'} --model {folder} --checkpoint {whisper} --k 4"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--device", "cpu", "--prompt", "w5 w6"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "original_llava.py"))
    without, heard = capsys.readouterr().out.splitlines()[-2:]
    assert without.startswith("without a sound: w") and heard.startswith("with the sound:  w")
    assert without.split()[3:] != heard.split()[3:]


class TestMistakes:
    """Refused before any work is done: the tower isn't asked."""

    @pytest.fixture(autouse=True)
    def forbid_work(self, model: Any) -> None:
        def fail(*_: Any) -> None:
            raise AssertionError("the tower ran")

        model.get_vision_tower().vision_tower.register_forward_pre_hook(fail)

    @pytest.fixture(params=["forward", "generate"])
    def call(self, request: pytest.FixtureRequest, model: Any) -> Any:
        if request.param == "forward":
            return model
        return lambda input_ids=None, **inputs: model.generate(input_ids, max_new_tokens=1, **inputs)

    def test_numbers_of_sounds_and_images(self, model: Any, call: Any) -> None:
        soundclip, inputs = patch(model, TinyEncoder(), k=K), pad_inputs()
        with (
            soundclip.audio(make_sounds(4), sampling_rate=RATE),
            pytest.raises(ValueError, match="4 sounds for 3 images: give one sound per image"),
        ):
            call(**inputs)
        for images in (2, 4):
            with (
                soundclip.audio(make_sounds(3), sampling_rate=RATE),
                pytest.raises(ValueError, match=f"{images} images given, but the prompt has room for 3"),
            ):
                call(**{**inputs, "images": make_pixels(images)})

    def test_no_image_for_a_sound(self, model: Any, call: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        with soundclip.audio(make_sounds(1), sampling_rate=RATE):
            with pytest.raises(ValueError, match="no images.*: a sound needs an image"):
                call(input_ids=torch.tensor([[1, IMAGE, 6]]))
            with pytest.raises(ValueError, match=r"no image token \(-200\).*: a sound needs an image"):
                call(input_ids=torch.tensor([[1, 5, 6]]), images=make_pixels(1))

    def test_inputs_embeds(self, model: Any, call: Any) -> None:
        soundclip = patch(model, TinyEncoder(), k=K)
        with (
            soundclip.audio(make_sounds(1), sampling_rate=RATE),
            pytest.raises(ValueError, match="inputs_embeds can't be given"),
        ):
            call(inputs_embeds=torch.zeros(1, 3, 24), images=make_pixels(1))

    def test_k_above_the_patches(self, model: Any) -> None:
        with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
            patch(model, TinyEncoder(), k=10)
        soundclip = patch(model, TinyEncoder(), k=9)
        with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
            soundclip.k = 10
        assert soundclip.k == 9

    @pytest.mark.parametrize("sizes", [None, [(40, 60)]])
    def test_tiles_without_image_sizes(self, model: Any, call: Any, sizes: Any) -> None:
        model.config.mm_patch_merge_type = "spatial"
        soundclip = patch(model, TinyEncoder(), k=K)
        with (
            soundclip.audio(make_sounds(3), sampling_rate=RATE),
            pytest.raises(ValueError, match=r"(no|1) image_sizes for 3 images in tiles"),
        ):
            call(**{**anyres_inputs(), "image_sizes": sizes})

    def test_a_tower_that_is_not_loaded(self, model: Any) -> None:
        model.get_vision_tower().is_loaded = False
        with pytest.raises(ValueError, match=r"isn't loaded: call model.get_vision_tower\(\).load_model\(\)"):
            patch(model, TinyEncoder())

    def test_a_model_without_a_tower(self, model: Any) -> None:
        del model.model.vision_tower
        with pytest.raises(TypeError, match="has no vision tower: its config has no mm_vision_tower"):
            patch(model, TinyEncoder())

    def test_a_tower_without_a_slot(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        tower = model.get_vision_tower()
        monkeypatch.setattr(type(tower), "hidden_size", 3 * WIDTH)  # as CLIPVisionTowerS2 has it
        with pytest.raises(TypeError, match="CLIPVisionTower whose tokens join several scales"):
            patch(model, TinyEncoder())
        tower.vision_tower = nn.Linear(2, 2)
        with pytest.raises(TypeError, match="CLIPVisionTower without a CLS token"):
            patch(model, TinyEncoder())
