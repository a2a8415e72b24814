"""Weights of Whisper's encoder under one set of names, from any file format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llava_soundclip.encoders.checkpoints import check_tensors
from llava_soundclip.encoders.whisper.mel import WINDOW_TOKENS
from llava_soundclip.fingerprints import fingerprint

_ENGLISH_VOCABULARY = 51_864  # tokens; multilingual checkpoints have one or two more
_TURBO_TEXT_LAYERS = 4  # large-v3 has 32; distilled decoders on large-v3's encoder have 2
_SIZES = {  # (width, blocks) of the released encoders
    (384, 4): "tiny",
    (512, 6): "base",
    (768, 12): "small",
    (1024, 24): "medium",
    (1280, 32): "large",
}
_TRANSFORMERS_NAMES = {
    "positional_embedding": "embed_positions.weight",
    "ln_post.": "layer_norm.",
    "blocks.": "layers.",
    ".attn_ln.": ".self_attn_layer_norm.",
    ".attn.query.": ".self_attn.q_proj.",
    ".attn.key.": ".self_attn.k_proj.",
    ".attn.value.": ".self_attn.v_proj.",
    ".attn.out.": ".self_attn.out_proj.",
    ".mlp_ln.": ".final_layer_norm.",
    ".mlp.0.": ".fc1.",
    ".mlp.2.": ".fc2.",
}


@dataclass(frozen=True)
class WhisperWeights:
    """Tensors of an encoder, and the sizes that their shapes don't show.

    Raises:
        ValueError: if the tensors aren't those of a Whisper encoder; the message names the first wrong ones.
    """

    source: Path  # for messages
    state: Mapping[str, Tensor]  # names as in openai-whisper's AudioEncoder; any float dtype
    n_head: int  # attention heads of a block
    n_vocab: int  # the decoder's tokens
    n_text_layer: int  # the decoder's blocks

    def __post_init__(self) -> None:
        stem = self.state.get("conv1.weight")
        if stem is None or stem.ndim != 3:
            raise ValueError(
                f"{self.source} holds no Whisper encoder: its conv1.weight is missing or isn't a kernel"
            )
        expected = encoder_shapes(self.n_mels, self.n_state, self.n_layer)
        if not self.n_layer:
            raise ValueError(f"{self.source} doesn't hold a whole Whisper encoder: it has no blocks")
        check_tensors(self.source, self.state, expected, "Whisper encoder")
        if self.n_head < 1 or self.n_state % self.n_head:
            raise ValueError(
                f"{self.source}: {self.n_head} attention heads don't divide a width of {self.n_state}"
            )

    @property
    def n_mels(self) -> int:
        """Number of frequency bins of the input."""
        return self.state["conv1.weight"].shape[1]

    @property
    def n_state(self) -> int:
        """Width of a hidden state."""
        return self.state["conv1.weight"].shape[0]

    @property
    def n_layer(self) -> int:
        """Number of blocks."""
        return len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})

    @property
    def variant(self) -> str:
        """Name of the released checkpoint with these shapes, such as "tiny.en"; large-v1 and -v2 are both "large"."""
        size = _SIZES.get((self.n_state, self.n_layer), f"whisper-{self.n_state}x{self.n_layer}")
        if size == "large" and self.n_mels == 128:
            return "turbo" if self.n_text_layer == _TURBO_TEXT_LAYERS else "large-v3"
        return f"{size}.en" if self.n_vocab == _ENGLISH_VOCABULARY else size

    @property
    def identity(self) -> str:
        """The variant and 8 hex digits that identify the trained weights, independent of the file format.

        A quantised file (int8) has another identity than its original.
        """
        trained = {name: tensor for name, tensor in self.state.items() if name != "positional_embedding"}
        return f"{self.variant}-{fingerprint(trained)}"


def encoder_shapes(n_mels: int, n_state: int, n_layer: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an encoder's tensors, as in openai-whisper's `AudioEncoder`."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (n_state, n_mels, 3),
        "conv1.bias": (n_state,),
        "conv2.weight": (n_state, n_state, 3),
        "conv2.bias": (n_state,),
        "positional_embedding": (WINDOW_TOKENS, n_state),
        "ln_post.weight": (n_state,),
        "ln_post.bias": (n_state,),
    }
    block: dict[str, tuple[int, ...]] = {
        **{f"{norm}.{part}": (n_state,) for norm in ("attn_ln", "mlp_ln") for part in ("weight", "bias")},
        **{f"attn.{matrix}.weight": (n_state, n_state) for matrix in ("query", "key", "value", "out")},
        **{f"attn.{matrix}.bias": (n_state,) for matrix in ("query", "value", "out")},  # the key has none
        "mlp.0.weight": (4 * n_state, n_state),
        "mlp.0.bias": (4 * n_state,),
        "mlp.2.weight": (n_state, 4 * n_state),
        "mlp.2.bias": (n_state,),
    }
    return shapes | {f"blocks.{i}.{name}": shape for i in range(n_layer) for name, shape in block.items()}


def transformers_name(name: str) -> str:
    """Translate a name in openai-whisper's `AudioEncoder` to that in transformers' `WhisperEncoder`."""
    for ours, theirs in _TRANSFORMERS_NAMES.items():
        name = name.replace(ours, theirs)
    return name
