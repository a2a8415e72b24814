"""The miniature's CLIP: its own vision tower, with a text tower that was trained for it.

It scores captions of the miniature's world without the Hub; `weights/demo/README.md` says what its scores are worth.
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
LONGEST = 77  # tokens, as CLIP
TEXT_WIDTH = 128
JOINT_WIDTH = 128  # of the space that both towers are projected into


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
        eos_token_id=1,  # not 2: for 2, CLIP reads a text at the token with the highest number
        pad_token_id=2,
    )
    return CLIPConfig(
        text_config=text.to_dict(),
        vision_config=assemble.make_vision_config().to_dict(),
        projection_dim=JOINT_WIDTH,
        architectures=["CLIPModel"],
    )


def make_clip_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Read the text tower's tokenizer. Its tokens go down to single bytes, so any text can be encoded."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        add_prefix_space=True,  # as the file says; transformers 4 would turn it off
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )


def clip_folder(cache: str | Path | None = None) -> Path:
    """Find the miniature's CLIP, an ordinary `from_pretrained` folder; the first call writes it into the cache.

    Its scores can be compared with each other only. It knows 28 things, and it sees with the same tower as the model
    whose captions it scores, so it is no independent judge.

    Args:
        cache: folder for assembled models, as `load_demo` takes it.

    Returns:
        The folder, for `CLIPScore` or `CLIPModel.from_pretrained`.

    Raises:
        FileNotFoundError: if the miniature's weights aren't there.
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
