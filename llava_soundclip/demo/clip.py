"""The miniature's CLIP: its own vision tower, with a text tower that was trained for it.

It scores captions of the miniature's world without the Hub. `weights/demo/README.md` says how good its scores are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llava_soundclip.demo import assemble
from llava_soundclip.demo.parts import cache_folder, digest, weights_folder

if TYPE_CHECKING:
    from transformers import CLIPConfig, PreTrainedTokenizerBase

WEIGHTS, TOKENIZER = "clip.safetensors", "clip-tokenizer.json"
BEGIN, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"  # the tokens 0, 1 and 2
LONGEST = 77  # maximum length in tokens, as in CLIP
TEXT_WIDTH = 128
JOINT_WIDTH = 128  # of the joint space of both towers


def make_clip_config(vocabulary: int) -> CLIPConfig:
    """Configuration of the CLIP.

    Args:
        vocabulary: number of tokens that the text tower knows.
    """
    from transformers import CLIPConfig, CLIPTextConfig

    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=JOINT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        bos_token_id=0,
        eos_token_id=1,  # not 2: with 2, CLIP takes the token with the highest number as the end of a text
        pad_token_id=2,
    )
    return CLIPConfig(
        text_config=text.to_dict(),
        vision_config=assemble.make_vision_config().to_dict(),
        projection_dim=JOINT_WIDTH,
        architectures=["CLIPModel"],
    )


def make_clip_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Read the text tower's tokenizer. It has a token for each byte, so it can encode any text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        add_prefix_space=True,  # as in the file; transformers 4 would turn it off
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )


def clip_folder(cache: str | Path | None = None) -> Path:
    """The folder of the miniature's CLIP, in `from_pretrained` format. The first call writes it into the cache.

    Its scores can only be compared with each other. It knows 28 things, and it sees with the same tower as the model
    whose captions it scores, so it isn't an independent judge.

    Args:
        cache: folder for assembled models, as in `load_demo`.

    Returns:
        The folder, for `CLIPScore` or `CLIPModel.from_pretrained`.

    Raises:
        FileNotFoundError: if the miniature's weights are missing.
    """
    weights = weights_folder()
    parts = (weights / "tower.safetensors", weights / WEIGHTS, weights / TOKENIZER)
    name = f"clip-{digest(*parts, Path(__file__), Path(assemble.__file__))}"
    return assemble.write_once(cache_folder(cache) / name, lambda partial: write_clip(partial, weights))


def write_clip(folder: Path, weights: Path) -> None:
    """Write the CLIP as a `from_pretrained` folder.

    Args:
        folder: an empty folder.
        weights: the folder with `tower.safetensors`, `clip.safetensors` and `clip-tokenizer.json`.
    """
    from safetensors.torch import load_file

    state = {f"vision_model.{key}": value for key, value in assemble.tower_state(weights).items()}
    state |= {key: value.float() for key, value in load_file(weights / WEIGHTS).items()}
    assemble.save_state(state, folder)
    tokenizer = make_clip_tokenizer(weights / TOKENIZER)
    make_clip_config(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assemble.make_image_processor().save_pretrained(folder)
    assemble.widen_parts(folder)
