"""Whisper checkpoints by name, or in any of these file formats. Code in a file is never executed.

| format | library |
|---|---|
| folder with `config.json`, and `model.safetensors` (also in shards) or `pytorch_model.bin` | transformers |
| `.pt` with "dims" and "model_state_dict" | openai-whisper |
| folder with `model.bin` | CTranslate2, faster-whisper |
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_soundclip.demo.parts import DEMO, WHISPER, find_part
from llava_soundclip.encoders.checkpoints import (
    INDEX,
    Layout,
    find_checkpoint,
    read_tensors,
    unpickle_tensors,
)
from llava_soundclip.encoders.whisper.ctranslate2 import is_ctranslate2, read_ctranslate2
from llava_soundclip.encoders.whisper.weights import WhisperWeights, encoder_shapes, transformers_name
from llava_soundclip.files import read_json

HUB_IDS = {
    **{
        f"{size}{suffix}": f"openai/whisper-{size}{suffix}"
        for size in ("tiny", "base", "small", "medium")
        for suffix in ("", ".en")
    },
    "large-v1": "openai/whisper-large",
    "large-v2": "openai/whisper-large-v2",
    "large-v3": "openai/whisper-large-v3",
    "large": "openai/whisper-large-v3",  # the latest, as in openai-whisper
    "large-v3-turbo": "openai/whisper-large-v3-turbo",
    "turbo": "openai/whisper-large-v3-turbo",
}
NAMES = (*HUB_IDS, DEMO)
LAYOUT = Layout(
    files=("model.safetensors", INDEX, "model.bin"),
    config="config.json",
    accepted="a transformers or CTranslate2 folder; or an openai-whisper .pt",
)

_PREFIXES = ("model.encoder.", "encoder.")  # in transformers' files with and without a head


def read_checkpoint(checkpoint: str | PathLike[str], revision: str | None = None) -> WhisperWeights:
    """Read the encoder of a Whisper checkpoint. The variant is read from the weights, not from the file name.

    Args:
        checkpoint: Whisper name ("small", "large-v3", "turbo"; from the Hub), Hub id, transformers folder,
            openai-whisper `.pt`, CTranslate2 folder or its `model.bin`; "demo" for the miniature's. A name takes
            precedence over a folder of that name: write "./small" for the folder.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: for an unknown name, and for a file that is truncated, foreign or contains code.
        OSError: for a path that doesn't exist, and if the Hub can't be reached or lacks the checkpoint.
    """
    if checkpoint == DEMO:
        path = find_part(WHISPER).parent
    else:
        path = find_checkpoint(checkpoint, HUB_IDS, "Whisper", revision, LAYOUT)
    if path.is_dir():
        if (path / "model.bin").is_file():
            path = path / "model.bin"
        elif (path / "config.json").is_file():
            return _read_transformers(path)
        else:
            raise ValueError(f"{path} holds neither config.json (transformers) nor model.bin (CTranslate2)")
    if is_ctranslate2(path):
        return read_ctranslate2(path)
    if path.suffix in (".safetensors", ".json"):
        raise ValueError(f"{path}: give its folder, {path.parent}, with config.json and the weights")
    return _read_openai(path)


def _read_openai(path: Path) -> WhisperWeights:
    content = unpickle_tensors(path)
    dims, state = content.get("dims"), content.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise ValueError(  # noqa: TRY004 (the file is wrong, not the caller's type)
            f"{path} isn't an openai-whisper checkpoint: it holds [{', '.join(sorted(map(reprlib.repr, content))[:5])}], "
            "expected 'dims' and 'model_state_dict'"
        )
    n_head, n_vocab, n_text_layer = _numbers(dims, ("n_audio_head", "n_vocab", "n_text_layer"), path)
    return WhisperWeights(path, _encoder_part(state, ("encoder.",)), n_head, n_vocab, n_text_layer)


def _read_transformers(folder: Path) -> WhisperWeights:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not 'whisper'")
    if config.get("activation_function", "gelu") != "gelu":
        raise ValueError(
            f"{folder} has activation_function {config['activation_function']!r}; Whisper's is 'gelu'"
        )
    sizes = _numbers(
        config, ("encoder_attention_heads", "vocab_size", "decoder_layers"), folder / "config.json"
    )
    tensors = _encoder_part(read_tensors(folder, _PREFIXES), _PREFIXES)
    layers = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    ours = {transformers_name(name): name for name in encoder_shapes(0, 0, layers)}
    state = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    return WhisperWeights(folder, state, *sizes)


def _encoder_part(tensors: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the first prefix that any name has, without the prefix. Empty if no name has one."""
    for prefix in prefixes:
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if isinstance(name, str) and name.startswith(prefix)
        }
        if found:
            return found
    return {}


def _numbers(sizes: Mapping[str, Any], names: Sequence[str], path: Path) -> list[int]:
    for name in names:
        if type(sizes.get(name)) is not int:
            raise ValueError(f"{path} has {name} {reprlib.repr(sizes.get(name))}, expected a whole number")
    return [sizes[name] for name in names]
