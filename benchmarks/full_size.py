"""LLaVA-1.5-7B's parts at full size with random weights, which the benchmarks time."""

from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

LAYERS = 32  # of the 7B language model


def build_tower() -> CLIPVisionModel:
    """CLIP ViT-L/14 at 336 px."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        )
    )


def build_mm_projector() -> nn.Module:
    """LLaVA's two-layer MLP, 1024 to 4096."""
    return nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 4096))


def build_llm(layers: int) -> LlamaModel:
    """Some layers of a 7B LLaMA, with next to no vocabulary."""
    return LlamaModel(
        LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=layers,
            num_attention_heads=32,
            vocab_size=32,
        )
    )
