"""CTranslate2's `model.bin`, the format of faster-whisper.

A flat, little-endian list: the version of the format, the name and revision of the specification, and the name, shape,
type and bytes of every variable. At the end are aliases of variables, since equal tensors are stored once.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from llava_soundclip.encoders.whisper.weights import WhisperWeights

_VERSION = 6  # version of the container, the only one since CTranslate2 3.0
_SPECIFICATION = "WhisperSpec"
_DTYPES = {
    0: torch.float32,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.float16,
    5: torch.bfloat16,
}
_MOST_SHARED = 4  # times that the tensors may be larger than the file, since aliases share their numbers
_QUANTISED = (torch.int8, torch.int16)
_LAYER = "encoder/layer_{}/"
_PARTS = {  # openai-whisper's name to CTranslate2's; query, key and value are one matrix
    "conv1.weight": "conv1/weight",
    "conv1.bias": "conv1/bias",
    "conv2.weight": "conv2/weight",
    "conv2.bias": "conv2/bias",
    "positional_embedding": "position_encodings/encodings",
    "ln_post.weight": "layer_norm/gamma",
    "ln_post.bias": "layer_norm/beta",
}
_BLOCK_PARTS = {
    "attn_ln.weight": "self_attention/layer_norm/gamma",
    "attn_ln.bias": "self_attention/layer_norm/beta",
    "attn.out.weight": "self_attention/linear_1/weight",
    "attn.out.bias": "self_attention/linear_1/bias",
    "mlp_ln.weight": "ffn/layer_norm/gamma",
    "mlp_ln.bias": "ffn/layer_norm/beta",
    "mlp.0.weight": "ffn/linear_0/weight",
    "mlp.0.bias": "ffn/linear_0/bias",
    "mlp.2.weight": "ffn/linear_1/weight",
    "mlp.2.bias": "ffn/linear_1/bias",
}


@dataclass(frozen=True)
class _Variable:
    offset: int  # bytes from the start of the file
    size: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype


def is_ctranslate2(path: Path) -> bool:
    """True if a file starts like CTranslate2's: a small version number, then a class name."""
    with path.open("rb") as file:
        head = file.read(6)
        if len(head) < 6:
            return False
        version, length = struct.unpack("<IH", head)
        name = file.read(length)
    return 1 <= version < 256 and name.endswith(b"Spec\0")


def read_ctranslate2(path: Path) -> WhisperWeights:
    """Read Whisper's encoder from a CTranslate2 `model.bin`. The decoder's bytes are skipped.

    Weights in int8 or int16 are scaled back to float32, but their rounding remains.

    Raises:
        ValueError: for a model other than Whisper, another version of the format, or a truncated file.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        variables = reader.index()
        layers = sum(
            name.endswith("ffn/linear_0/weight") for name in variables if name.startswith("encoder/layer_")
        )
        state = {ours: reader.tensor(f"encoder/{theirs}") for ours, theirs in _PARTS.items()}
        for i in range(layers):
            for ours, theirs in _BLOCK_PARTS.items():
                state[f"blocks.{i}.{ours}"] = reader.tensor(_LAYER.format(i) + theirs)
            stacked = _LAYER.format(i) + "self_attention/linear_0/"
            for part in ("weight", "bias"):
                tensor = reader.tensor(stacked + part)
                if not tensor.ndim or len(tensor) % 3:
                    raise ValueError(
                        f"{path}: {stacked}{part} holds no query, key and value: {tuple(tensor.shape)}"
                    )
                for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    state[f"blocks.{i}.attn.{name}.{part}"] = third
            # Whisper's key has no bias; converters write zeros.
            if state.pop(f"blocks.{i}.attn.key.bias").any():
                raise ValueError(f"{path}: {stacked}bias has a bias for the key, but Whisper has none")
        return WhisperWeights(
            source=path,
            state=state,
            n_head=reader.number("encoder/num_heads"),
            n_vocab=reader.length("decoder/embeddings/weight"),
            n_text_layer=sum(
                name.endswith("/ffn/linear_0/weight")
                for name in variables
                if name.startswith("decoder/layer_")
            ),
        )


class _Reader:
    """Reader of the list of variables, and of the bytes of single variables."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._length = path.stat().st_size
        self._read = 0  # bytes of all tensors that were asked for
        self._variables: dict[str, _Variable] = {}

    def index(self) -> dict[str, _Variable]:
        """All variables by name, with the aliases."""
        version = self._number("<I")
        specification = self._name()
        if specification != _SPECIFICATION:
            raise ValueError(f"{self._path} holds a CTranslate2 {specification}, not a {_SPECIFICATION}")
        if version != _VERSION:
            raise ValueError(
                f"{self._path} has version {version} of CTranslate2's format, expected {_VERSION}: "
                "convert it again with ct2-transformers-converter"
            )
        self._number("<I")  # revision of the specification
        for _ in range(self._number("<I")):
            name = self._name()
            shape = tuple(self._number("<I") for _ in range(self._number("<B")))
            code, size = self._number("<B"), self._number("<I")
            dtype = _DTYPES.get(code)
            if dtype is None:
                raise ValueError(f"{self._path}: {name} is of an unknown type, number {code}")
            if size != prod(shape) * dtype.itemsize:
                raise ValueError(f"{self._path}: {name} has {size} bytes, but shape {shape} in {dtype}")
            self._variables[name] = _Variable(self._file.tell(), size, shape, dtype)
            self._skip(size)
        for _ in range(self._number("<I")):
            alias, name = self._name(), self._name()
            self._variables[alias] = self.variable(name)
        return self._variables

    def variable(self, name: str) -> _Variable:
        try:
            return self._variables[name]
        except KeyError:
            raise ValueError(f"{self._path} lacks {name}") from None

    def tensor(self, name: str) -> Tensor:
        """The value of a variable; quantised weights are scaled back."""
        variable = self.variable(name)
        self._read += variable.size
        if self._read > _MOST_SHARED * self._length:
            raise ValueError(
                f"{self._path} is of {self._length} bytes, and its many names for the same numbers ask for more"
            )
        self._file.seek(variable.offset)
        content = bytearray(self._bytes(variable.size))
        if not content:
            raise ValueError(f"{self._path}: {name} is empty, of shape {variable.shape}")
        value = torch.frombuffer(content, dtype=variable.dtype).reshape(variable.shape)
        if variable.dtype not in _QUANTISED or f"{name}_scale" not in self._variables:
            return value
        scale = self.tensor(f"{name}_scale").float()  # one scale per tensor (int16) or per row (int8)
        if scale.numel() not in (1, len(value)):
            raise ValueError(f"{self._path}: {name} of shape {variable.shape} has {scale.numel()} scales")
        return value.float() / scale.reshape(-1, *[1] * (value.ndim - 1))

    def number(self, name: str) -> int:
        """The value of a variable that is one whole number."""
        value = self.tensor(name)
        if value.numel() != 1 or value.is_floating_point():
            raise ValueError(
                f"{self._path}: {name} isn't one whole number, but of shape {tuple(value.shape)}"
            )
        return int(value)

    def length(self, name: str) -> int:
        """The length of a variable's first axis."""
        shape = self.variable(name).shape
        if not shape:
            raise ValueError(f"{self._path}: {name} is a single number")
        return shape[0]

    def _bytes(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) < count:
            raise ValueError(f"{self._path} is truncated: it has only {self._length} bytes")
        return content

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _name(self) -> str:
        return self._bytes(self._number("<H")).rstrip(b"\0").decode(errors="replace")

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._length:
            raise ValueError(f"{self._path} is truncated: it has only {self._length} bytes")
        self._file.seek(count, 1)
