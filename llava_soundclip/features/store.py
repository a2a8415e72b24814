"""Features on disk: a header, shards of tensors, and an index part for each shard.

    features.json               properties that all rows share
    shards/<writer>-00000.safetensors    "audio" (n, d_a) or (n, L, d_a), "cls" (n, D), perhaps "patches" (n, P, D)
    index/<writer>-00000.parquet         id, source, start, end, shard, row, checksum of its n rows
    locks/                      empty files, locked by the writers

A shard is written under another name and then renamed. Then its index part is written in the same way. A shard counts
once its index part exists, and is never changed afterwards. Names begin with the writer's own id, so that several
processes can write into one folder. If two processes made the same clip, the row of the first shard by name counts.
"""

import errno
import hashlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_soundclip._version import __version__
from llava_soundclip.files import parse_json, write_file

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

StoredDType = Literal["float16", "float32"]

HEADER = "features.json"
FORMAT = 1

_INDEX = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        ("start", pa.float64()),
        ("end", pa.float64()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("checksum", pa.uint32(), nullable=False),
    ]
)
_SHARD_SIZE_KEY = b"shard_bytes"
_MAX_SHARD_BYTES = 2**29  # with patches, a row takes megabytes


@dataclass(frozen=True)
class FeatureHeader:
    """Properties that all rows of a features folder share.

    Attributes:
        encoder: `AudioEncoder.signature()`; without "fusion" if all blocks are stored, so that any fusion can use them.
        audio_dim: d_a, the encoder's width.
        layers: L, the number of blocks stored per sound; None if one vector is stored.
        tower: the vision tower's architecture, as in a projector's `tower`.
        tower_weights: fingerprint of the tower's weights.
        tower_layer: index into the tower's hidden states.
        width: D, the tower's width.
        frames: number of frames whose mean is a clip's CLS token.
        dtype: dtype of the stored numbers.
        patches: whether the shards also hold patch tokens.
        library_version: version that made the folder; not compared.
    """

    encoder: Mapping[str, str]
    audio_dim: int
    layers: int | None
    tower: str
    tower_weights: str
    tower_layer: int
    width: int
    frames: int = 1
    dtype: StoredDType = "float16"
    patches: bool = False
    library_version: str = __version__

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", dict(self.encoder))
        wrong = []
        if not all(isinstance(item, str) for pair in self.encoder.items() for item in pair):
            wrong.append("encoder")
        wrong += [name for name in ("tower", "tower_weights", "library_version") if not self._is(name, str)]
        wrong += [
            name
            for name in ("audio_dim", "width", "frames", *(("layers",) if self.layers is not None else ()))
            if not self._is(name, int) or getattr(self, name) < 1
        ]
        wrong += [] if self._is("tower_layer", int) else ["tower_layer"]
        wrong += [] if isinstance(self.patches, bool) else ["patches"]
        wrong += [] if self.dtype in get_args(StoredDType) else ["dtype"]
        if wrong:
            raise ValueError("; ".join(f"{name} can't be {getattr(self, name)!r}" for name in wrong))

    def _is(self, name: str, kind: type) -> bool:
        value = getattr(self, name)
        return isinstance(value, kind) and not isinstance(value, bool)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype."""
        return getattr(torch, self.dtype)

    @property
    def audio_shape(self) -> tuple[int, ...]:
        """Shape of one row of "audio": (d_a,) or (L, d_a)."""
        return (self.audio_dim,) if self.layers is None else (self.layers, self.audio_dim)

    def differences(self, other: "FeatureHeader") -> list[str]:
        """The fields that differ, with both values. Rows with different headers can't be in one folder."""
        names = [field.name for field in fields(self) if field.name != "library_version"]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [
            f"{name} is {mine!r} there and {theirs!r} here" for name, mine, theirs in pairs if mine != theirs
        ]

    @classmethod
    def read(cls, folder: Path) -> "FeatureHeader":
        """The header of a folder.

        Raises:
            FileNotFoundError: if there is no header.
            ValueError: if it is broken or in a later format; the message names the file.
        """
        path = folder / HEADER
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{folder} isn't a features folder: it holds no {HEADER}. `llava-soundclip features` makes one."
            ) from None
        try:
            values = parse_json(content)
            if not isinstance(values, dict):
                raise TypeError("not an object")
            if values.pop("format", None) != FORMAT:
                raise ValueError(f"not format {FORMAT}, which this version reads")
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} isn't a header of features: {error}") from error

    def write(self, folder: Path) -> "FeatureHeader":
        """Write the header unless another process has. Returns the header that is in the folder afterwards."""
        path = folder / HEADER
        if not path.exists():
            write_file(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", replace=False)
            _sync(folder)
        return FeatureHeader.read(folder)


class FeatureWriter:
    """Adds rows to a features folder, shard by shard. Close it, or use it as a context manager.

    Incomplete files of earlier runs are removed if no other process writes into the folder.

    Args:
        path: the folder; created if it doesn't exist.
        header: properties that the rows share.
        shard_size: rows per shard; fewer if they would take more than 512 MiB.

    Attributes:
        finished: ids in the folder. `refresh` adds those of other processes.

    Raises:
        ValueError: if the folder's header differs; the message names every field that differs.
        FileExistsError: if the folder holds other files.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: FeatureHeader, *, shard_size: int = 1000
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be 1 or more, not {shard_size}")
        self.path = Path(path)
        self.header = header
        self.shard_size = shard_size
        self.finished: set[str] = set()
        if self.path.is_dir() and not (self.path / HEADER).exists() and _has_foreign_files(self.path):
            raise FileExistsError(
                f"{self.path} holds other files and no {HEADER}: name an empty or a new folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        differences = header.write(self.path).differences(header)
        if differences:
            raise ValueError(
                f"{self.path} holds features of another kind: {'; '.join(differences)}. "
                "Take another folder, or the same options."
            )
        for name in ("shards", "index", "locks"):
            (self.path / name).mkdir(exist_ok=True)
        self._writer = uuid.uuid4().hex[:16]
        self._count = 0
        self._known_parts: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._buffers: dict[str, Tensor] = {}
        self._lock = _clean_alone(self.path)
        try:
            self.refresh()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Read which rows other processes have finished since the last call.

        Raises:
            ValueError: if an index part is broken; the message names it.
        """
        for part in _parts(self.path):
            if part.name not in self._known_parts:
                self.finished.update(_read_part(part).column("id").to_pylist())
                self._known_parts.add(part.name)

    def add(
        self,
        id: str,
        source: str,
        audio: Tensor,
        cls: Tensor,
        patches: Tensor | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> bool:
        """Add a row, unless its id is in the folder already.

        Args:
            id: the clip's name in the folder.
            source: the video that it comes from.
            audio: (d_a,) or (L, d_a), depending on the header; of any float dtype.
            cls: (D,) of any float dtype.
            patches: (P, D) if the header has patches. P must be the same in the whole shard.
            start: start in the video, in seconds; None for its beginning.
            end: end in the video, in seconds; None for its end.

        Returns:
            Whether a shard was written, so that all rows so far are on the disk.

        Raises:
            ValueError: for a wrong shape, or for NaN or infinity, including after conversion to the folder's dtype.
        """
        row = {"audio": audio, "cls": cls} | ({} if patches is None else {"patches": patches})
        row = {name: self._checked(name, tensor) for name, tensor in row.items()}
        if ("patches" in row) != self.header.patches:
            raise ValueError(f"the folder is {'with' if self.header.patches else 'without'} patches")
        if id in self.finished:
            return False
        if not self._buffers:
            row_bytes = sum(tensor.nbytes for tensor in row.values())
            capacity = max(1, min(self.shard_size, _MAX_SHARD_BYTES // row_bytes))
            for name, tensor in row.items():
                self._buffers[name] = torch.empty((capacity, *tensor.shape), dtype=tensor.dtype)
        at = len(self._rows)
        checksum = 0
        for name, tensor in row.items():
            if tensor.shape != self._buffers[name].shape[1:]:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} after {tuple(self._buffers[name].shape[1:])}"
                )
            self._buffers[name][at] = tensor
            checksum = _crc(self._buffers[name][at], checksum)
        times = {"start": start, "end": end}
        self._rows.append({"id": id, "source": source, **times, "row": at, "checksum": checksum})
        self.finished.add(id)
        if len(self._rows) < len(self._buffers["cls"]):
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write the waiting rows as a shard, and sync it to the disk."""
        if not self._rows:
            return
        name = f"{self._writer}-{self._count:05}"
        self._count += 1  # already now, so that after a Ctrl-C the rows go into another shard
        shard = self.path / "shards" / f"{name}.safetensors"
        tensors = {key: buffer[: len(self._rows)] for key, buffer in self._buffers.items()}
        with _written_as(shard) as part:
            _save_tensors(tensors, part)

        columns = {key: [row[key] for row in self._rows] for key in self._rows[0]}
        table = (
            pa.table({**columns, "shard": [shard.name] * len(self._rows)}).select(_INDEX.names).cast(_INDEX)
        )
        table = table.replace_schema_metadata({_SHARD_SIZE_KEY: str(shard.stat().st_size).encode()})
        index = self.path / "index" / f"{name}.parquet"
        with _written_as(index) as part:
            pq.write_table(table, part, write_page_checksum=True)

        self._known_parts.add(index.name)
        self._rows.clear()

    def close(self) -> None:
        """Write the waiting rows, and release the folder."""
        try:
            self.flush()
        finally:
            self._lock.close()

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        shapes = {"audio": self.header.audio_shape, "cls": (self.header.width,)}
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and the folder's is {shapes[name]}")
        if name == "patches" and (tensor.ndim != 2 or tensor.shape[1] != self.header.width):
            raise ValueError(f"patches have shape {tuple(tensor.shape)}, not (P, {self.header.width})")
        stored = tensor.detach().to("cpu", self.header.torch_dtype)
        if not stored.isfinite().all():
            if tensor.isfinite().all():
                raise ValueError(
                    f"{name} reaches {float(tensor.abs().max()):g}, too large for {self.header.dtype}"
                )
            raise ValueError(f"{name} holds NaN or infinity")
        return stored


class FeatureFolder:
    """A reader of a features folder in its present state. Rows stay on disk, mapped into memory, until they are read.

    Rows are numbered in the order of their ids. A reader may be sent to worker processes.

    Attributes:
        path: the folder.
        header: properties that its rows share.

    Raises:
        FileNotFoundError: if it isn't a features folder.
        ValueError: if a file is broken or missing; the message names it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.header = FeatureHeader.read(self.path)
        parts = [self._check_part(part, _read_part(part)) for part in _parts(self.path)]
        table = pa.concat_tables(parts) if parts else _INDEX.empty_table()
        table = table.sort_by(
            [("id", "ascending"), ("shard", "ascending"), ("row", "ascending")]
        ).combine_chunks()
        if len(table) > 1:
            ids = table.column("id")
            first = pc.not_equal(ids.slice(1), ids.slice(0, len(table) - 1)).to_numpy()
            table = table.filter(pa.array(np.concatenate([[True], first])))
        self.table: pa.Table = table  # id, source, start, end, shard, row, checksum
        shards = table.column("shard").combine_chunks().dictionary_encode()
        shards = shards if isinstance(shards, pa.DictionaryArray) else shards.combine_chunks()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard = torch.from_numpy(shards.indices.to_numpy(zero_copy_only=False).astype(np.int64))
        self._row = torch.from_numpy(table.column("row").to_numpy().astype(np.int64))
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # a mapped tensor would be sent with all its rows

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all rows, sorted."""
        return self.table.column("id").to_pylist()

    @cached_property
    def sources(self) -> list[str]:
        """The source of each row."""
        return self.table.column("source").to_pylist()

    def digest(self) -> str:
        """16 hex digits that identify the rows, from the header and the ids."""
        digest = hashlib.sha256(json.dumps(asdict(self.header), sort_keys=True).encode())
        for id in self.ids:
            digest.update(id.encode() + b"\0")
        return digest.hexdigest()[:16]

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The features of some rows.

        Args:
            indices: (B,) integers from 0 to len - 1, in any order; they may repeat.

        Returns:
            Audio (B, d_a) or (B, L, d_a), and CLS tokens (B, D), both float32.

        Raises:
            IndexError: for an index out of range.
            ValueError: if a shard is broken; the message names it.
        """
        return self._gather("audio", self.header.audio_shape, indices), self._gather(
            "cls", (self.header.width,), indices
        )

    def patches(self, indices: Tensor) -> Tensor:
        """The patch tokens of some rows.

        Args:
            indices: as in `rows`.

        Returns:
            (B, P, D) float32.

        Raises:
            IndexError, ValueError: as in `rows`; also a ValueError if the folder has no patches.
        """
        if not self.header.patches:
            raise ValueError(f"{self.path} was made without patches: make it again with --patches")
        if not len(self):
            return torch.empty(0, 0, self.header.width)
        return self._gather("patches", tuple(self._tensors(0)["patches"].shape[1:]), indices)

    def verify(self) -> None:
        """Read all rows, and compare them with their checksums.

        Raises:
            ValueError: if shards are damaged; the message names them.
        """
        checksums = self.table.column("checksum").to_numpy()
        damaged = []
        for number, name in enumerate(self._shard_names):
            try:
                tensors = self._tensors(number)
            except ValueError as error:
                damaged.append(str(error))
                continue
            where = (self._shard == number).nonzero().flatten()
            wrong = 0
            for index, row in zip(where.tolist(), self._row[where].tolist(), strict=True):
                checksum = 0
                for key in _tensor_names(self.header):
                    checksum = _crc(tensors[key][row], checksum)
                wrong += checksum != checksums[index]
            if wrong:
                damaged.append(
                    f"{self.path / 'shards' / name} is damaged: {wrong} of {len(where)} rows differ"
                )
        if damaged:
            raise ValueError("; ".join(damaged))

    def _gather(self, name: str, shape: tuple[int, ...], indices: Tensor) -> Tensor:
        if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
            raise IndexError(f"indices must be (B,) integers, not {tuple(indices.shape)} {indices.dtype}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"an index is outside the {len(self)} rows of {self.path}")
        shards, rows = self._shard[indices], self._row[indices]
        result = torch.empty((len(indices), *shape), dtype=self.header.torch_dtype)
        gathered = result.numpy()  # unlike torch's, its indexing starts no threads for a shard's few rows
        order = shards.argsort()
        numbers, counts = shards[order].unique_consecutive(return_counts=True)
        for number, places in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            stored = self._tensors(number)[name]
            if tuple(stored.shape[1:]) != shape:
                path = self.path / "shards" / self._shard_names[number]
                raise ValueError(
                    f"{path} is damaged: {name} has rows of {tuple(stored.shape[1:])}, not {shape}"
                )
            gathered[places.numpy()] = stored.numpy()[rows[places].numpy()]
        return result.float()

    def _tensors(self, number: int) -> dict[str, Tensor]:
        """The mapped tensors of a shard."""
        if number not in self._mapped:
            path = self.path / "shards" / self._shard_names[number]
            count = int(self._row[self._shard == number].max()) + 1
            shapes = {"audio": self.header.audio_shape, "cls": (self.header.width,)}
            try:
                with safe_open(path, "pt") as file:  # the tensors stay mapped to the file
                    tensors = {name: file.get_tensor(name) for name in _tensor_names(self.header)}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is truncated, damaged or missing: {error}") from error
            for name, tensor in tensors.items():
                shape = shapes.get(name, tuple(tensor.shape[1:]))
                if (
                    tensor.dtype != self.header.torch_dtype
                    or tensor.shape[1:] != shape
                    or len(tensor) < count
                ):
                    raise ValueError(
                        f"{path} is damaged: {name} is {tuple(tensor.shape)} {tensor.dtype}, not the index's "
                        f"{count} rows of {shape} {self.header.dtype}"
                    )
            self._mapped[number] = tensors
        return self._mapped[number]

    def _check_part(self, part: Path, table: pa.Table) -> pa.Table:
        """Check that the shard of an index part exists and is complete."""
        name = f"{part.stem}.safetensors"
        shard = self.path / "shards" / name
        try:
            expected = int((table.schema.metadata or {})[_SHARD_SIZE_KEY])
        except (KeyError, ValueError):
            raise ValueError(
                f"{part} isn't an index part of features: it doesn't give the size of its shard"
            ) from None
        if pc.unique(table.column("shard")).to_pylist() not in ([name], []):
            raise ValueError(f"{part} isn't an index part of features: its rows aren't those of {name}")
        try:
            size = shard.stat().st_size
        except OSError as error:
            raise ValueError(f"{shard} is missing, and {part} lists its rows: {error.strerror}") from error
        if size != expected:
            raise ValueError(
                f"{shard} is truncated or damaged: it has {size} bytes, and {part} says {expected}"
            )
        return table.replace_schema_metadata(None)


def _tensor_names(header: FeatureHeader) -> tuple[str, ...]:
    """The names of a shard's tensors, in the order of their checksum."""
    return ("audio", "cls", "patches") if header.patches else ("audio", "cls")


def _crc(row: Tensor, before: int) -> int:
    return zlib.crc32(row.contiguous().numpy().tobytes(), before)


def _parts(folder: Path) -> list[Path]:
    """The index parts, sorted by name."""
    try:
        names = os.listdir(folder / "index")
    except FileNotFoundError:
        return []
    return [folder / "index" / name for name in sorted(names) if name.endswith(".parquet") and name[0] != "."]


def _read_part(part: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(part, page_checksum_verification=True, memory_map=False).read()
        metadata = table.schema.metadata
        return table.select(_INDEX.names).cast(_INDEX).replace_schema_metadata(metadata)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{part} isn't an index part of features, or it is truncated or damaged: {error}"
        ) from error


@contextmanager
def _written_as(path: Path) -> Iterator[Path]:
    """Yield the name of a file while it is written. It is synced, and renamed to `path`.

    Raises:
        OSError: if it can't be written; the message names `path`.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        code = error.errno or errno.EIO
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # the library hides the system's error in a text
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error


def _sync(path: Path) -> None:
    """Sync a file, or a folder's list of files, to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _has_foreign_files(folder: Path) -> bool:
    return any(not entry.name.startswith(f".{HEADER}.") for entry in folder.iterdir())


def _clean_alone(folder: Path) -> BinaryIO:
    """Lock the folder as one of its writers. If it is the only writer, remove the leftovers of dead ones."""
    lock = open(folder / "locks" / "writers", "ab")  # noqa: SIM115 - open as long as the writer
    if fcntl is None:
        return lock
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            _remove(_leftovers(folder))
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError:  # a file system without locks: leftovers stay, and are ignored
        pass
    return lock


def _leftovers(folder: Path) -> list[Path]:
    """Files of incomplete shards, which have no index part."""
    names = [path for sub in ("shards", "index") for path in (folder / sub).iterdir()]
    indexed = {part.stem for part in _parts(folder)}
    return [
        path
        for path in names
        if path.name.endswith(".part") or (path.suffix == ".safetensors" and path.stem not in indexed)
    ]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
