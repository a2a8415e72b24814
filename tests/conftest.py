"""Tiny random models, built from configs: no download, seconds for the whole suite."""

import os
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import numpy as np
import pytest
import torch
from torch import Tensor

from llava_soundclip.encoders import AudioEncoder

torch.set_num_threads(1)  # matrices this small are far slower on several, above all beside other work

SHARED = Path(__file__).resolve().parents[2] / "shared"  # other people's clips and goldens, here and in CI


PROGRESS = re.compile(r".+: ([\d,]+ of [\d,]+, )?\S+ (s|min|h) (left|so far)")  # a line, every ten seconds


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files, and say what stays in one process (`--dist loadgroup`).

    Files with slow tests come first, so that no process is left with a long one while the other has ended. A file stays
    together, so that its fixtures are made once. Ray's clusters stay together: two at once are too much for two cores.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "ray" if item.path.name == "test_cluster.py" else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))


def is_installed(name: str) -> bool:
    """Whether a distribution is there."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


class TinyEncoder(AudioEncoder):
    """Reads a vector off the samples themselves, so that a test knows what it must be."""

    name = "tiny"
    sampling_rate = 16_000
    checkpoint = "tiny-test"

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim

    @classmethod
    def load(cls, **options: Any) -> "TinyEncoder":
        return cls(**options)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        padded = [np.pad(w.mean(0), (0, self.dim))[: self.dim] for w in waveforms]
        return torch.tensor(np.stack(padded), dtype=torch.float32)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of clips and goldens; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


PATCHES = 9  # 3 x 3
WIDTH = 32
IMAGE_TOKEN = 98
PAD = 0


def tiny_vision_config(image_size: int = 30) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=10,
    )


def tiny_text_config(kind: str = "Llama") -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(
        vocab_size=100,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def fill_tiny(model: Any) -> Any:
    """Give a model weights that differ enough, and let it generate as long as it is asked to."""
    with torch.no_grad():
        # Fresh weights are tiny: every token would look alike, and every caption would be the same.
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
            elif name.endswith(("class_embedding", "image_newline")):
                parameter.normal_(0, 1)
        # Never written: without a cache the stock code would take it for one more image.
        model.lm_head.weight[IMAGE_TOKEN] = 0
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.eval()


def build_tiny_llava(
    *, strategy: str = "default", seed: int = 0, layer: int | list[int] = -2, image_size: int = 30
) -> Any:
    """A random `LlavaForConditionalGeneration` of two layers and width 32: 9 patches, 100 words."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=tiny_vision_config(image_size),
        text_config=tiny_text_config(),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    return fill_tiny(LlavaForConditionalGeneration(config))


def build_tiny_vip_llava() -> Any:
    """A random `VipLlavaForConditionalGeneration` that reads three layers, the deepest of them not last."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    torch.manual_seed(0)
    layers = (
        "vision_feature_layer"
        if hasattr(VipLlavaConfig(), "vision_feature_layer")
        else "vision_feature_layers"
    )
    config = VipLlavaConfig(
        vision_config=tiny_vision_config(),
        text_config=tiny_text_config(),
        image_token_index=IMAGE_TOKEN,
        **{layers: [-1, -2, 1]},
    )
    return fill_tiny(VipLlavaForConditionalGeneration(config))


def build_tiny_llava_next(*, text: str = "Llama", strategy: str = "default") -> Any:
    """A random `LlavaNextForConditionalGeneration`: up to 2 x 2 or 3 x 1 tiles of 9 patches beside the base."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=tiny_vision_config(),
        text_config=tiny_text_config(text),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy=strategy,
        image_grid_pinpoints=[[30, 60], [60, 30], [60, 60], [90, 30], [30, 90]],
    )
    return fill_tiny(LlavaNextForConditionalGeneration(config))


@pytest.fixture
def tiny_llava() -> Any:
    return build_tiny_llava()


@pytest.fixture
def tiny_encoder() -> TinyEncoder:
    return TinyEncoder()


def build_tiny_processor(model: Any) -> Any:
    """A stock `LlavaProcessor` or `LlavaNextProcessor` whose 90 words are w0 ... w89, for a tiny model."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<image>": IMAGE_TOKEN}
    words |= {f"w{i}": i for i in range(3, 100) if i != IMAGE_TOKEN}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size: dict[str, Any] = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
    if hasattr(model.config, "image_grid_pinpoints"):
        size["image_grid_pinpoints"] = model.config.image_grid_pinpoints
        image_processor = transformers.LlavaNextImageProcessor(**size)
        processor_class = transformers.LlavaNextProcessor
    else:
        image_processor, processor_class = (
            transformers.CLIPImageProcessor(**size),
            transformers.LlavaProcessor,
        )
    return processor_class(
        image_processor=image_processor,
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=["<image>"],
            model_input_names=["input_ids", "attention_mask"],
        ),
        patch_size=10,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.features.making import save_tiny_tower

    return save_tiny_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="session")
def whisper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.encoders import fake_whisper

    return fake_whisper.write_openai(tmp_path_factory.mktemp("whisper") / "tiny.pt", fake_whisper.weights())


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder "clips" of eleven videos, one of them longer."""
    from tests.features.making import make_films
    from tests.media.making import film

    folder = tmp_path_factory.mktemp("films") / "clips"
    make_films(folder, 10)
    film(folder / "long.mp4", seconds=3.0, audio_codec="aac", sample_format="fltp")
    return folder
