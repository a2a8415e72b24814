"""A projector's files: found on disk or on the Hub, and read with errors that say what is wrong with a file."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import nn

from llava_soundclip._version import __version__
from llava_soundclip.files import parse_json

P = TypeVar("P", bound=nn.Module)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METADATA_KEY = "llava_soundclip"  # one key, so that a file's bytes don't depend on a map's order

_MAX_CONFIG_BYTES = 2**20
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_STORED_FLOATS = {"F64", "F32", "F16", "BF16"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_FILE_SUFFIXES = {".safetensors", ".json", ".gguf", ".npz", ".onnx", ".zip"} | _PICKLES


def find(source: str | Path, **hub_options: Any) -> tuple[Path, Path | None]:
    """The path of the weights for a folder, a file or a Hub id, and the path of their config.json.

    Raises:
        FileNotFoundError: if a path doesn't exist or has no weights.
        OSError: if the Hub can't be reached or refuses.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _find_weights(path), path / CONFIG
    if path.is_file():
        return path, None
    return _download(_checked_repo_id(source), **hub_options)


def _find_weights(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        hint = f" {pickles[0]} may hold a pickle, which is never opened." if pickles else ""
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}.{hint} Projector.save_pretrained writes one.")
    return weights


def _checked_repo_id(source: str | Path) -> str:
    """Return a Hub id. What looks like a missing path is refused before any request."""
    name = str(source)
    path_like = (
        isinstance(source, Path)
        or name.startswith((".", "~"))
        or Path(name).suffix in _FILE_SUFFIXES
        or name.count("/") != 1  # a projector's id has an owner
    )
    try:
        validate_repo_id(name)
    except HFValidationError:
        path_like = True
    if path_like:
        raise FileNotFoundError(
            f"{name!r} is no folder or file here, and a Hub id has the form 'user/name': check the path."
        )
    return name


def _download(repo_id: str, *, revision: str | None, **options: Any) -> tuple[Path, Path | None]:
    """Paths in the Hub's cache of the weights and, if the repository has one, of config.json."""
    where = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        weights = Path(hf_hub_download(repo_id, WEIGHTS, revision=revision, **options))
    except LocalEntryNotFoundError as error:
        raise _unreachable(where, error) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hub's {where} holds no {WEIGHTS}, and no other file is opened, least of all a pickle: "
            "is it a projector? Projector.push_to_hub uploads one."
        ) from error
    except HfHubHTTPError as error:
        error.append_to_message(
            f"\nThis was for the projector {where}. A private or gated one needs token= or `hf auth login`."
        )
        raise
    except Exception as error:  # from whichever HTTP library this huggingface_hub uses
        raise _unreachable(where, error) from error
    _check_sum(repo_id, weights)
    commit = weights.parent.name  # of the cached snapshot, since the branch may have moved
    try:
        return weights, Path(hf_hub_download(repo_id, CONFIG, revision=commit, **options))
    except EntryNotFoundError:
        return weights, None


def _unreachable(where: str, error: Exception) -> OSError:
    """The error for the user. huggingface_hub's own often names neither the repository nor the cause."""
    return OSError(
        f"The projector {where} isn't in the cache and couldn't be fetched. Check the connection, HF_HUB_OFFLINE "
        f"and local_files_only, and try again, or give a folder. The Hub's answer: {error.__cause__ or error}"
    )


def _check_sum(repo_id: str, weights: Path) -> None:
    """Compare with the Hub's sha256. For LFS files it is the name of the file in the cache."""
    expected = weights.resolve().name
    if re.fullmatch("[0-9a-f]{64}", expected):
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        if found != expected:
            raise OSError(
                f"The download of {repo_id!r} is damaged: its sha256 is {found}, the Hub's is {expected}. "
                "Try again with force_download=True."
            )


def load(
    build: Callable[..., P],
    arguments: Collection[str],
    weights: Path,
    config_file: Path | None,
    dtype: torch.dtype,
) -> P:
    """Build a projector from its file, with every name, shape and number checked.

    Args:
        build: function that builds the module from the arguments in its config.
        arguments: names that a config may have.
        weights: a safetensors file.
        config_file: its config.json. If this is None or doesn't exist, the metadata of the weights are used.
        dtype: dtype of the loaded weights.

    Raises:
        ValueError: if the file is truncated, in another format or from another model, or its config is wrong.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype!r}.")
    if weights.suffix != ".safetensors":
        raise ValueError(f"{weights} isn't a .safetensors file, and nothing else is opened.")
    try:
        with safe_open(weights, "pt") as file:
            config = _read_config(arguments, weights, file.metadata() or {}, config_file)
            try:
                with torch.device("meta"):  # without allocating memory or drawing random numbers
                    projector = build(**config)
            except ValueError as error:
                raise ValueError(f"The config of {weights} is wrong: {error}") from error
            _check_tensors(weights, file, projector)
            # Copies, since loaded tensors may stay mapped to the file.
            state = {name: file.get_tensor(name).to(dtype, copy=True) for name in projector.state_dict()}
    except SafetensorError as error:
        raise ValueError(
            f"{weights} isn't a whole safetensors file ({error}): it is truncated, damaged or in another format. "
            "Copy or download it again (force_download=True)."
        ) from error
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{weights} holds NaN or infinity as {dtype} in {', '.join(broken)}.")
    projector.load_state_dict(state, assign=True)
    return projector.eval()


def _read_config(
    arguments: Collection[str], weights: Path, metadata: Mapping[str, str], config_file: Path | None
) -> dict[str, Any]:
    """The arguments of the projector, from the metadata or `config.json`. If there are both, they must agree."""
    found: dict[str, str | bytes] = {}
    if METADATA_KEY in metadata:
        found[f"the metadata of {weights}"] = metadata[METADATA_KEY]
    if config_file is not None and config_file.is_file():
        if config_file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(
                f"{config_file} is larger than {_MAX_CONFIG_BYTES} bytes, so it isn't a projector's config."
            )
        found[str(config_file)] = config_file.read_bytes()
    if not found:
        raise ValueError(
            f"{weights} isn't a projector of llava_soundclip: its metadata has no {METADATA_KEY!r} and there "
            f"is no {CONFIG} with it."
        )
    configs = [_parse_config(arguments, name, text) for name, text in found.items()]
    differing = [key for key in {**configs[0], **configs[-1]} if configs[0].get(key) != configs[-1].get(key)]
    if differing:
        raise ValueError(
            f"{' and '.join(found)} disagree on {', '.join(differing)}: they are from different projectors. "
            "Remove the wrong one, or save again."
        )
    return configs[0]


def _parse_config(arguments: Collection[str], name: str, text: str | bytes) -> dict[str, Any]:
    try:
        config = parse_json(text, nan=False)
    except ValueError as error:
        raise ValueError(f"{name} isn't valid JSON ({error}).") from error
    config = config if isinstance(config, dict) else {}
    version = config.pop("library_version", None)
    missing = {"audio_dim", "width", "hidden"} - config.keys()
    unknown = config.keys() - set(arguments)
    if missing or unknown:
        raise ValueError(
            f"{name} isn't the config of a projector that llava_soundclip {__version__} knows (it says version "
            f"{version!r}): {_named(missing=missing, unknown=unknown)}."
        )
    return config


def _check_tensors(weights: Path, file: Any, projector: nn.Module) -> None:
    """Check names, shapes and dtypes from the file's header, before reading a tensor."""
    expected = {name: list(tensor.shape) for name, tensor in projector.state_dict().items()}
    names = file.keys()
    present = {name: file.get_slice(name) for name in names}
    missing, unexpected = expected.keys() - present.keys(), present.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"{weights} isn't a projector with this config: {_named(missing=missing, unexpected=unexpected)}."
        )
    wrong = [
        f"{name} is {part.get_dtype()} {part.get_shape()}, expected floats {expected[name]}"
        for name, part in present.items()
        if part.get_shape() != expected[name] or part.get_dtype() not in _STORED_FLOATS
    ]
    if wrong:
        raise ValueError(f"The tensors of {weights} don't fit its config: {'; '.join(wrong)}.")


def _named(**groups: Iterable[str]) -> str:
    """ "missing a, b; unknown c". The many keys of a foreign model are cut short."""
    parts = []
    for what, keys in groups.items():
        names = sorted(keys)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        parts += [f"{what} {', '.join(names[:5])}{more}"] if names else []
    return "; ".join(parts)
