"""Assemble the miniature from its parts, as an ordinary `from_pretrained` folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_soundclip._extras import require
from llava_soundclip._quiet import quiet_loading
from llava_soundclip.demo.parts import SMOLLM2, digest, find_part

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        CLIPVisionConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaProcessor,
        PreTrainedTokenizerBase,
    )
    from transformers.image_processing_utils import BaseImageProcessor

_SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
MM_PROJECTOR = "mm_projector-{}.safetensors"
SIZE, PATCH = 96, 16  # pixels
WIDTH = 384  # of the tower and of Whisper tiny, whose vector therefore fits without padding or truncation
BLOCKS = 4  # trained blocks; LLaVA reads layer -2, so one more block follows
IMAGE_TOKEN, IMAGE_TOKEN_ID = "<image>", 5
RESERVED_TOKEN = "<file_sep>"  # SmolLM2's token 5, unused in chats; it becomes the image token
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_language_model(hub: bool = False) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load SmolLM2-135M-Instruct unchanged, float32, from the pip package or from the Hub.

    The package has 4-bit weights (Q4_1), the Hub bfloat16. The miniature was trained and measured with the
    package's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = find_part(SMOLLM2, hub)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent)}
    if not hub:
        require("gguf", extra="demo")
        source["gguf_file"] = path.name
    with warnings.catch_warnings(), quiet_loading():
        warnings.simplefilter("ignore")  # torch warns that the GGUF reader's arrays are read-only
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    return model.eval(), _as_trained(tokenizer)


def _as_trained(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make SmolLM2's tokenizer the same for every reader: as it was in the mm_projectors' training.

    transformers 4 adds a token in front of every prompt of a GGUF. The Hub's tokenizer splits numbers.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = json.loads(tokenizer.backend_tokenizer.to_str())
    flags = {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
    words |= {"normalizer": None, "post_processor": None, "model": words["model"] | flags}
    backend = Tokenizer.from_str(json.dumps(words))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_SPECIAL)


def make_vision_config() -> CLIPVisionConfig:
    """Configuration of the assembled tower."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=1024,
        num_hidden_layers=BLOCKS + 1,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def make_config(text_config: dict[str, Any]) -> LlavaConfig:
    """Configuration of the miniature: a small LLaVA-1.5 with its defaults."""
    from transformers import LlamaConfig, LlavaConfig

    foreign = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")
    text = LlamaConfig(**{key: value for key, value in text_config.items() if key not in foreign})
    return LlavaConfig(
        vision_config=make_vision_config(),
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        architectures=["LlavaForConditionalGeneration"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def make_image_processor() -> BaseImageProcessor:
    """Make CLIP's image processor, for the tower's size."""
    try:
        from transformers import CLIPImageProcessorPil as ImageProcessor
    except ImportError:  # transformers 4: the only class that needs no torchvision
        from transformers import CLIPImageProcessor as ImageProcessor

    return ImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def make_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Make the stock processor: CLIP's image processor, and SmolLM2's tokenizer with an image token."""
    from tokenizers import Tokenizer
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    words = tokenizer.backend_tokenizer.to_str().replace(RESERVED_TOKEN, IMAGE_TOKEN)
    return LlavaProcessor(
        image_processor=make_image_processor(),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(words),
            pad_token="<|im_end|>",
            **_SPECIAL,
            model_max_length=8192,
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
        ),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def assemble(folder: Path, weights: Path, hub: bool = False) -> Path:
    """Write the miniature as an ordinary `from_pretrained` folder, unless the folder exists.

    Args:
        folder: the folder to write.
        weights: the folder with `tower.safetensors` and `mm_projector-prepared.safetensors`.
        hub: whether to take the language model from the Hub instead of the pip package.

    Returns:
        `folder`.
    """
    return write_once(folder, lambda partial: _write_demo(partial, weights, hub))


def write_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder, unless it exists.

    The folder appears in one step when it is complete, so two processes may do this at the same time.

    Args:
        folder: the folder to write.
        write: function of a folder that fills it.

    Returns:
        `folder`.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        write(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_demo(folder: Path, weights: Path, hub: bool) -> None:
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    language_model, tokenizer = load_language_model(hub)
    mm_projector = load_file(weights / MM_PROJECTOR.format("prepared"))
    # These are the names in llava-hf's checkpoints, which every version of transformers reads.
    state = {f"language_model.{key}": value for key, value in language_model.state_dict().items()}
    del state["language_model.lm_head.weight"]  # tied to the embedding
    state |= {f"vision_tower.vision_model.{key}": value for key, value in tower_state(weights).items()}
    state |= {f"multi_modal_projector.{key}": value.float() for key, value in mm_projector.items()}

    save_state(state, folder)
    make_config(language_model.config.to_dict()).save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    _widen(folder)


def save_state(state: dict[str, Tensor], folder: Path) -> None:
    """Write a model's tensors under the file name that `from_pretrained` expects."""
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tower_state(weights: Path) -> dict[str, Tensor]:
    """Read the tower in float32, and add the layers after the layer that LLaVA reads.

    Args:
        weights: the folder with `tower.safetensors`.

    Returns:
        Tensors by the names of a `CLIPVisionModel`, without the prefix "vision_model.".
    """
    from safetensors.torch import load_file

    tower = load_file(weights / "tower.safetensors")
    return {key: value.float() for key, value in tower.items()} | _unread_layers(tower)


def _unread_layers(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the layers after the layer that LLaVA reads: a block that returns its input, and a norm."""
    import torch

    first = "encoder.layers.0."
    block = {
        key.removeprefix(first): torch.zeros_like(value)
        for key, value in tower.items()
        if key.startswith(first)
    }
    layers = {f"encoder.layers.{BLOCKS}.{key}": value.float() for key, value in block.items()}
    for norm in (
        f"encoder.layers.{BLOCKS}.layer_norm1",
        f"encoder.layers.{BLOCKS}.layer_norm2",
        "post_layernorm",
    ):
        layers |= {f"{norm}.weight": torch.ones(WIDTH), f"{norm}.bias": torch.zeros(WIDTH)}
    return layers


def fingerprint(weights: Path, hub: bool = False) -> str:
    """Hex digits that identify the weights, the source and the code that a folder was made with."""
    parts = (weights / "tower.safetensors", weights / MM_PROJECTOR.format("prepared"), Path(__file__))
    return digest(*parts, words=("hub" if hub else SMOLLM2.sha256,))


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


def _widen(folder: Path) -> None:
    """Let both transformers 4 and 5 read the folder: write each renamed setting under both names."""
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.get("rope_parameters") or {"rope_type": "default", "rope_theta": text.get("rope_theta")}
    text |= {"rope_parameters": rope, "rope_theta": rope["rope_theta"]}
    _edit(folder / "config.json", text_config=text)
    processor = json.loads((folder / "processor_config.json").read_text())
    if settings := processor.pop("image_processor", None):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    widen_parts(folder)


def widen_parts(folder: Path) -> None:
    """`_widen` for the files that every model folder has: config, tokenizer and image processor."""
    _edit(folder / "config.json", torch_dtype="float32", dtype="float32")
    _edit(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
