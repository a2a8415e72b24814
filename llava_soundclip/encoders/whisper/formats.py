"""Whisper checkpoints, by name or in any file format that users have. Nothing in a file is executed.

| format | of |
|---|---|
| folder with `config.json` and `model.safetensors` (also in shards) or `pytorch_model.bin` | transformers |
| `.pt` with "dims" and "model_state_dict" | openai-whisper |
| folder with `model.bin` | CTranslate2, faster-whisper |
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_soundclip.encoders.checkpoints import first_line, read_json, unpickle_tensors
from llava_soundclip.encoders.whisper.ctranslate2 import is_ctranslate2, read_ctranslate2
from llava_soundclip.encoders.whisper.weights import WhisperWeights, encoder_shapes, transformers_name

HUB_IDS = {
    **{
        f"{size}{suffix}": f"openai/whisper-{size}{suffix}"
        for size in ("tiny", "base", "small", "medium")
        for suffix in ("", ".en")
    },
    "large-v1": "openai/whisper-large",
    "large-v2": "openai/whisper-large-v2",
    "large-v3": "openai/whisper-large-v3",
    "large": "openai/whisper-large-v3",  # the newest, as in openai-whisper
    "large-v3-turbo": "openai/whisper-large-v3-turbo",
    "turbo": "openai/whisper-large-v3-turbo",
}
_INDEX = "model.safetensors.index.json"

_PREFIXES = ("model.encoder.", "encoder.")  # with and without a head, in transformers' files


def check_checkpoint(checkpoint: str | PathLike[str]) -> None:
    """Refuse what can't be a checkpoint, before anything is read or downloaded.

    Raises:
        ValueError: for an unknown name; the known ones are listed.
        FileNotFoundError: for a path that doesn't exist.
    """
    name = str(checkpoint)
    if name in HUB_IDS or Path(name).expanduser().exists():
        return
    if isinstance(checkpoint, PathLike) or name.startswith((".", "/", "~")) or name.endswith((".pt", ".bin")):
        raise FileNotFoundError(f"no Whisper checkpoint at {name}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"unknown Whisper checkpoint {name!r}: give one of {', '.join(HUB_IDS)}; a Hub id; "
            "a transformers or CTranslate2 folder; or an openai-whisper .pt"
        )


def read_checkpoint(checkpoint: str | PathLike[str], revision: str | None = None) -> WhisperWeights:
    """Read the encoder of a Whisper checkpoint. Which variant it is, the weights tell, not the file's name.

    Args:
        checkpoint: a Whisper name ("small", "large-v3", "turbo"; from the Hub), a Hub id, a transformers
            folder, an openai-whisper `.pt`, a CTranslate2 folder or its `model.bin`. A name goes before a
            folder of that name: write "./small".
        revision: branch, tag or commit; for the Hub.

    Raises:
        ValueError: for an unknown name, and for a file that is cut, foreign or holds code.
        OSError: for a path that doesn't exist, or a Hub that can't be reached or doesn't have it.
    """
    check_checkpoint(checkpoint)
    name = str(checkpoint)
    path = Path(name).expanduser()
    if name in HUB_IDS or not path.exists():
        path = _from_hub(HUB_IDS.get(name, name), revision)
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
        raise ValueError(f"{path}: give its folder, {path.parent}, where config.json and the weights are")
    return _read_openai(path)


def _from_hub(repo: str, revision: str | None) -> Path:
    """The cache's folder of a repository, with what is needed of it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        config = Path(hf_hub_download(repo, "config.json", revision=revision))
        commit = config.parent.name  # the rest of the same one, should the branch move on
        for name in ("model.safetensors", _INDEX, "model.bin"):
            try:
                weights = hf_hub_download(repo, name, revision=commit)
            except EntryNotFoundError as error:
                missing = error
                continue
            for shard in _shards(Path(weights)) if name == _INDEX else ():
                hf_hub_download(repo, shard, revision=commit)
            return config.parent
        raise missing
    except OSError as error:
        raise OSError(f"no folder {repo} here, and the Hub didn't give it: {first_line(error)}") from error


def _read_openai(path: Path) -> WhisperWeights:
    content = unpickle_tensors(path)
    dims, state = content.get("dims"), content.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise ValueError(  # noqa: TRY004 (the file is wrong, not the caller's type)
            f"{path} is no openai-whisper checkpoint: it holds {sorted(map(str, content))[:5]}, "
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
    tensors = _read_folder(folder)
    layers = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    ours = {transformers_name(name): name for name in encoder_shapes(0, 0, layers)}
    state = {ours.get(name, name): tensor for name, tensor in tensors.items()}
    return WhisperWeights(folder, state, *sizes)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors of a transformers folder, without their prefix."""
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")
    if (folder / _INDEX).is_file():
        state: dict[str, Tensor] = {}
        for shard in _shards(folder / _INDEX):
            state |= _read_safetensors(folder / shard)
        return state
    if (folder / "pytorch_model.bin").is_file():
        return _encoder_part(unpickle_tensors(folder / "pytorch_model.bin"), _PREFIXES)
    raise ValueError(f"{folder} has a config.json but no model.safetensors")


def _shards(index: Path) -> list[str]:
    """The names of the files that an index lists, which must be beside it."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
        raise ValueError(f"{index} doesn't list the files beside it")
    return sorted(set(shards.values()))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {
                ours: file.get_tensor(theirs)
                for ours, theirs in _encoder_names(file.keys(), _PREFIXES).items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or no safetensors file: {error}") from error
    except FileNotFoundError:
        raise ValueError(f"{path} is listed in the index but missing") from None


def _encoder_part(tensors: dict[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    return {ours: tensors[theirs] for ours, theirs in _encoder_names(tensors, prefixes).items()}


def _encoder_names(names: Iterable[str], prefixes: Iterable[str]) -> dict[str, str]:
    """The encoder's names without their prefix, and with it; empty if there are none (as in a shard)."""
    names = [name for name in names if isinstance(name, str)]
    for prefix in prefixes:
        found = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        if found:
            return found
    return {}


def _numbers(sizes: Mapping[str, Any], names: Sequence[str], path: Path) -> list[int]:
    for name in names:
        if type(sizes.get(name)) is not int:
            raise ValueError(f"{path} has {name} {sizes.get(name)!r}, expected a whole number")
    return [sizes[name] for name in names]
