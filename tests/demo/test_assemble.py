"""How the miniature's folder is put together, with a tiny language model in SmolLM2's place."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from llava_soundclip import load_demo
from llava_soundclip.demo import assemble as assembling

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "<file_sep>", "user", "assistant", "What"]


@pytest.fixture
def language_model(monkeypatch):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        rope_theta=100_000.0,
    )
    model = LlamaForCausalLM(config).eval()
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens([WORDS[i] for i in (0, 1, 2, 5)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    monkeypatch.setattr(assembling, "load_language_model", lambda hub=False: (model, tokenizer))
    return model


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    vision = assembling.make_config({}).vision_config
    vision.num_hidden_layers = assembling.BLOCKS
    tower = CLIPVisionModel(vision)
    state = getattr(tower, "vision_model", tower).state_dict()
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(
        {k: v.half() for k, v in state.items() if "post_layernorm" not in k and "position_ids" not in k},
        folder / "tower.safetensors",
    )
    shapes = {
        "linear_1.weight": (32, 384),
        "linear_1.bias": (32,),
        "linear_2.weight": (32, 32),
        "linear_2.bias": (32,),
    }
    save_file(
        {k: torch.randn(v).half() for k, v in shapes.items()}, folder / "mm_projector-prepared.safetensors"
    )
    return folder


def test_the_folder_is_an_ordinary_one(language_model, weights, tmp_path):
    folder = assembling.assemble(tmp_path / "cache" / "demo", weights)
    model, loading = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    text = model.model.language_model.state_dict()
    for key, value in language_model.model.state_dict().items():
        assert torch.equal(text[key], value), key
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    mm_projector = load_file(weights / "mm_projector-prepared.safetensors")
    for key, value in model.model.multi_modal_projector.state_dict().items():
        assert torch.equal(value, mm_projector[key].float()), key
    tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower).state_dict()
    for key, value in load_file(weights / "tower.safetensors").items():
        assert torch.equal(tower[key], value.float()), key


def test_the_layer_that_llava_reads_is_the_last_trained_one(language_model, weights, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(assembling.assemble(tmp_path / "demo", weights))
    states = model.model.vision_tower(torch.randn(1, 3, 96, 96), output_hidden_states=True).hidden_states
    assert model.config.vision_feature_layer == -2
    assert torch.equal(states[-1], states[-2])
    assert not torch.allclose(states[-2], states[-3])


def test_the_processor_makes_room_for_the_patches(language_model, weights, tmp_path):
    from PIL import Image

    folder = assembling.assemble(tmp_path / "demo", weights)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "What"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nWhat<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=[Image.new("RGB", (200, 120))], text=[text], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert (inputs["input_ids"] == assembling.IMAGE_TOKEN_ID).sum() == 36
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_both_names_of_the_rope_base_are_written(language_model, weights, tmp_path):
    config = json.loads((assembling.assemble(tmp_path / "demo", weights) / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == 100_000.0  # transformers 4 reads this one
    assert config["text_config"]["rope_parameters"]["rope_theta"] == 100_000.0  # transformers 5 this one


def test_a_folder_that_is_there_is_kept(language_model, weights, tmp_path):
    folder = assembling.assemble(tmp_path / "demo", weights)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert assembling.assemble(folder, weights) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_process_may_be_faster(language_model, weights, tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    widen = assembling._widen

    def slow(partial):
        widen(partial)
        folder.mkdir()
        (folder / "theirs").touch()

    monkeypatch.setattr(assembling, "_widen", slow)
    assembling.assemble(folder, weights)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "weights"}


def test_a_failure_leaves_nothing(language_model, weights, tmp_path, monkeypatch):
    def broken(partial):
        raise OSError("disk full")

    monkeypatch.setattr(assembling, "_widen", broken)
    with pytest.raises(OSError, match="disk full"):
        assembling.assemble(tmp_path / "demo", weights)
    assert {path.name for path in tmp_path.iterdir()} == {"weights"}


def test_other_weights_are_another_folder(weights):
    before = assembling.fingerprint(weights)
    assert assembling.fingerprint(weights) == before != assembling.fingerprint(weights, hub=True)
    save_file({"linear_1.weight": torch.zeros(1)}, weights / "mm_projector-prepared.safetensors")
    assert assembling.fingerprint(weights) != before


def test_options_for_patch_need_a_patched_model():
    with pytest.raises(TypeError, match="k: these are for patch"):
        load_demo(patched=False, k=3)


def test_an_unknown_mm_projector_is_named():
    with pytest.raises(ValueError, match="'prepared', 'stock', not 'raw'"):
        load_demo(mm_projector="raw")
