"""Checkpoint files of all encoders: finding them on disk, on the Hub or at a release, and reading them safely.

Files are safetensors, or torch's `.pt`, `.pth` and `.bin` with `weights_only=True`. They are memory-mapped, so
that unused tensors stay on disk.
"""

import re
import struct
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import torch
from torch import Tensor

from llava_soundclip.files import read_json, written_aside
from llava_soundclip.messages import without_advice

INDEX = "model.safetensors.index.json"  # for weights in several files

_CHUNK = 2**20  # bytes
_TIMEOUT = 30  # seconds without data
_MOST_SHARED = 4  # times that the tensors may be larger than the file, since some share their numbers
_FILES = ("model.safetensors", INDEX, "pytorch_model.bin")


class _Ignored:
    """Placeholder for a numpy number that a training loop left in a checkpoint. The number is never built."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Ignored, name)
    for name in (
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtypes.Float64DType",
    )
]


@dataclass(frozen=True)
class Layout:
    """Files of a checkpoint.

    Attributes:
        files: possible names of the weights on the Hub, in order of preference.
        config: name of a file that the weights need. A checkpoint is then a folder, and a published name takes
            precedence over a folder of that name: write "./small" for the folder.
        accepted: last items in the list of accepted checkpoints, for error messages.
    """

    files: Sequence[str] = _FILES
    config: str | None = None
    accepted: str = "or a file"


_LAYOUT = Layout()


class _Bomb(Exception):
    """A file that asks for more memory than its size explains."""


# What readers of checkpoints raise on damaged files.
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


def check_checkpoint(
    checkpoint: str | PathLike[str], known: Iterable[str], what: str, layout: Layout = _LAYOUT
) -> None:
    """Refuse an impossible checkpoint before anything is read or downloaded.

    Args:
        checkpoint: value from the user.
        known: names of published checkpoints.
        what: name of the encoder, for messages.
        layout: files of a checkpoint.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        FileNotFoundError: for a path that doesn't exist.
    """
    name = str(checkpoint)
    if name in known or Path(name).expanduser().exists():
        return
    path_like = name.startswith((".", "/", "~")) or name.endswith((".pt", ".pth", ".bin", ".safetensors"))
    if isinstance(checkpoint, PathLike) or path_like:
        raise FileNotFoundError(f"no {what} checkpoint at {name}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"unknown {what} checkpoint {name!r}: give one of {', '.join(known)}; a Hub id; {layout.accepted}"
        )


def find_checkpoint(
    checkpoint: str | PathLike[str],
    known: Mapping[str, str],
    what: str,
    revision: str | None = None,
    layout: Layout = _LAYOUT,
) -> Path:
    """Find the file or folder of a checkpoint, or download it.

    Args:
        checkpoint: a file or folder, a name in `known`, or a Hub id. An existing path takes precedence over a
            name, unless `layout` has a config.
        known: published checkpoints by name: Hub id, "owner/name/file" for a file on the Hub, or https address.
        what: name of the encoder, for messages.
        revision: branch, tag or commit on the Hub.
        layout: files of a checkpoint.

    Returns:
        Path of the file or folder.

    Raises:
        ValueError: for an unknown name.
        OSError: for a path that doesn't exist, and if the server can't be reached or lacks the file.
    """
    check_checkpoint(checkpoint, known, what, layout)
    name = str(checkpoint)
    path = Path(name).expanduser()
    if path.exists() and not (layout.config and name in known):
        return path
    source = known.get(name, name)
    if "://" in source:
        return download(source)
    owner, repository, *file = source.split("/", 2)
    return _from_hub(f"{owner}/{repository}", file or layout.files, layout.config, revision)


def download(url: str) -> Path:
    """Download a release's file into torch's cache, which the original packages also use.

    A failed download leaves no file.

    Raises:
        OSError: if the server can't be reached, refuses, or stops during the download.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_aside(path) as file:
            _fetch(url, file)
    except OSError as error:  # urllib's errors are OSErrors
        raise OSError(
            f"{url} couldn't be fetched ({error}): try again, or give the file's path as checkpoint="
        ) from error
    return path


def _fetch(url: str, file: BinaryIO) -> None:
    from rich.console import Console
    from rich.progress import wrap_file

    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        size = int(response.headers.get("Content-Length") or 0)
        shown = wrap_file(
            response, total=size, description=Path(url).name, console=Console(stderr=True), transient=True
        )
        with shown as body:
            while chunk := body.read(_CHUNK):
                file.write(chunk)
        if size and file.tell() != size:
            raise OSError(f"only {file.tell()} of {size} bytes arrived")


def _from_hub(repo: str, files: Sequence[str], config: str | None, revision: str | None) -> Path:
    """Download the first of several possible files. Returns the folder if there is a config, else the file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    wanted: Sequence[str] = [config] if config else files
    missing: Exception | None = None
    try:
        if config:
            # The weights come from the same commit, even if the branch moves during the download.
            revision = Path(hf_hub_download(repo, config, revision=revision)).parent.name
            wanted = files
        for name in wanted:
            try:
                path = Path(hf_hub_download(repo, name, revision=revision))
            except EntryNotFoundError as error:  # also when offline and not in the cache
                missing = missing or error
                continue
            for shard in _shards(path) if name == INDEX else ():
                hf_hub_download(repo, shard, revision=path.parent.name)
            return path.parent if config else path
        raise missing or FileNotFoundError()
    except OSError as error:  # the Hub's errors are OSErrors
        raise OSError(
            f"no file or folder {repo} here, and the Hub didn't provide its {' or '.join(wanted)}: "
            f"{first_line(error)}"
        ) from error


def read_tensors(path: Path, prefixes: Iterable[str] = ("",)) -> dict[str, Tensor]:
    """Read the tensors whose names start with one of the prefixes. All others stay on disk.

    Weights may be inside "state_dict" or "model". A leading "module." (from DataParallel) is removed.

    Args:
        path: a file, or a folder with a file or shards that are named as on the Hub.
        prefixes: prefixes of the names.

    Returns:
        Tensors by name, with the prefix. They may be mapped to the file: copy tensors that must outlive it.

    Raises:
        ValueError: for a file that is truncated, isn't a checkpoint, or holds more than tensors and plain values. Also
            for a folder without weights.
    """
    prefixes = tuple(prefixes)
    if path.is_dir():
        inside = [path / name for name in _FILES if (path / name).is_file()]
        if not inside:
            raise ValueError(f"{path} holds none of {', '.join(_FILES)}")
        path = inside[0]
    if path.name == INDEX:
        tensors: dict[str, Tensor] = {}
        for shard in _shards(path):
            tensors |= _read_safetensors(path.parent / shard, prefixes)
        return tensors
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefixes)
    content: Mapping[Any, Any] = unpickle_tensors(path)
    for inner in ("state_dict", "model"):
        if isinstance(content.get(inner), Mapping):
            content = content[inner]
    named = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {
        name: value
        for name, value in named.items()
        if name.startswith(prefixes) and isinstance(value, Tensor)
    }


def _shards(index: Path) -> list[str]:
    """The names of the shards that an index lists. They must be in the same folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or any(Path(str(shard)).name != shard for shard in shards.values()):
        raise ValueError(f"{index} doesn't list files of its own folder")
    return sorted(set(shards.values()))


def _read_safetensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118 (no mapping)
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or isn't a safetensors file: {error}") from error
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None


def unpickle_tensors(path: Path) -> dict[str, Any]:
    """Read the dict in a `.pt`, `.pth` or `.bin`: tensors and plain values. Code is refused, not run.

    Raises:
        ValueError: for a file that is truncated, isn't a checkpoint, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
        if packed:
            _check_archive(path)
        with torch.serialization.safe_globals(_IGNORED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle's protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
        _check_sizes(path, content)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or isn't a checkpoint: refused ({first_line(error)})"
        ) from error
    except _Bomb as error:
        raise ValueError(f"{path} {error}: refused") from None
    except MemoryError as error:
        raise ValueError(f"{path} asks for more memory than there is: {first_line(error)}") from error
    except _DAMAGED as error:
        raise ValueError(f"{path} is truncated or isn't a checkpoint: {first_line(error)}") from error
    return as_dict(content, path)


def _check_archive(path: Path) -> None:
    """Refuse a file that unpacks to more than its own size: torch never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Bomb(f"is compressed, and unpacks to {unpacked} bytes; checkpoints aren't compressed")


def _check_sizes(path: Path, content: object) -> None:
    """Refuse tensors that claim more numbers than the file holds, by strides of 0, sharing, or a sparse layout."""
    claimed = 0
    for tensor in _tensors_in(content):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _Bomb("holds a tensor that is sparse, quantised or without values")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise _Bomb(f"holds a tensor of shape {tuple(tensor.shape)} whose numbers aren't all in the file")
        claimed += size
    if claimed > _MOST_SHARED * path.stat().st_size:
        raise _Bomb(
            f"is of {path.stat().st_size} bytes, and holds tensors of {claimed} bytes that are the same"
        )


def _tensors_in(content: object) -> Iterator[Tensor]:
    """All tensors in nested dicts and lists, each container once."""
    seen: set[int] = set()
    left = [content]
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping | list | tuple) and id(part) not in seen:
            seen.add(id(part))
            left += part.values() if isinstance(part, Mapping) else part


def as_dict(content: object, path: Path) -> dict[str, Any]:
    """Return the content of a file if it is a dict.

    Raises:
        ValueError: if it isn't; the message names the file.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict")  # noqa: TRY004
    return content


def check_tensors(
    source: object, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Compare the names, shapes and dtypes of tensors with those of a model.

    Args:
        source: file of the tensors, for messages.
        found: tensors of the file.
        expected: shape of every tensor of the model.
        what: name of the model, for messages: "Whisper encoder".

    Raises:
        ValueError: if they differ; the message gives their number and the first three. Also if they aren't floats.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    odd = [
        f"{name} is {shapes.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(shapes.keys() | expected.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if odd:
        raise ValueError(
            f"{source} doesn't hold a whole {what}; {len(odd)} tensors differ: {'; '.join(odd[:3])}"
        )
    if any(not tensor.is_floating_point() for tensor in found.values()):
        raise ValueError(f"{source} holds weights that aren't floats: their quantisation is unknown")


def first_line(error: Exception) -> str:
    """The first line of an error's message, without torch's advice to run the code in a file."""
    return without_advice(str(error)).strip().partition("\n")[0] or type(error).__name__
