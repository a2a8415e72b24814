"""LLaVA-1.5-7B at full size with random weights, whole and in parts, which the benchmarks time."""

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

LAYERS = 32  # of the 7B language model
VOCABULARY, IMAGE_TOKEN = 32_064, 32_000


def tower_config(**changes: int) -> CLIPVisionConfig:
    """CLIP ViT-L/14 at 336 px."""
    full = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return CLIPVisionConfig(**full | changes)


def llm_config(**changes: int) -> LlamaConfig:
    """A 7B LLaMA."""
    full = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "vocab_size": VOCABULARY,
    }
    return LlamaConfig(**full | changes)


def build_tower() -> CLIPVisionModel:
    """CLIP ViT-L/14 at 336 px."""
    return CLIPVisionModel(tower_config())


def build_mm_projector() -> nn.Module:
    """LLaVA's two-layer MLP, from width 1024 to 4096."""
    return nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096))


def build_llm(layers: int) -> LlamaModel:
    """The first `layers` layers of a 7B LLaMA, with a tiny vocabulary."""
    return LlamaModel(llm_config(num_hidden_layers=layers, vocab_size=32))


def build_llava(device: str, dtype: torch.dtype, *, tiny: bool = False) -> LlavaForConditionalGeneration:
    """The whole model, built directly on its device in its dtype, so that the host holds none of the 14 GB.

    Args:
        device: device that the model is built on.
        dtype: dtype of the weights.
        tiny: build a model of width 64 with two or three layers and the same number of patches.
    """
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2} if tiny else {}
    config = LlavaConfig(
        vision_config=tower_config(**narrow, **({"num_hidden_layers": 3} if tiny else {})),
        text_config=llm_config(**narrow, **({"num_hidden_layers": 2} if tiny else {})),
        image_token_index=IMAGE_TOKEN,
    )
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.pad_token_id = 0
    return model.eval()
