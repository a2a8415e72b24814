"""Whisper encoders with drawn weights, and files of them in every format, for the tests."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from llava_soundclip.encoders.whisper.weights import WhisperWeights, encoder_shapes, transformers_name

ENGLISH, MULTILINGUAL = 51_864, 51_865  # vocabularies


GOLDEN_SIZES: dict[str, tuple[str, dict[str, int]]] = {  # case: sound, arguments of `weights`
    "chirp": ("chirp", {"n_state": 64, "n_layer": 3, "n_head": 4}),
    "click": ("click", {"n_state": 64, "n_layer": 3, "n_head": 4, "seed": 1}),
    "silence": ("silence", {"n_state": 64, "n_layer": 3, "n_head": 4}),
    "chirp-128": ("chirp", {"n_state": 32, "n_layer": 2, "n_head": 2, "n_mels": 128}),
    "chirp-31s": ("chirp-31s", {"n_state": 32, "n_layer": 2, "n_head": 2}),
}


def golden_sound(name: str) -> np.ndarray:
    """A synthetic sound, float32 (samples,) at 16 kHz: the same numbers wherever it is computed."""
    seconds = {"chirp": 3.0, "click": 0.1003, "silence": 5.0, "chirp-31s": 31.0}[name]
    time = np.arange(round(seconds * 16_000)) / 16_000
    if name == "silence":
        sound = np.zeros_like(time)
    elif name == "click":  # ends loud, so that the last frame matters
        sound = 0.6 * np.sin(2 * np.pi * 1900 * time) * np.exp(-30 * (time[-1] - time))
    else:
        sound = 0.3 * np.sin(2 * np.pi * (200 * time + 600 * np.minimum(time, 5) ** 2)) + 0.05 * np.sin(
            2 * np.pi * 5100 * time
        )
    return sound.astype(np.float32)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Tensors drawn from (seed, name), so that whoever uses a name has the same values.

    Matrices and kernels are normal over the square root of their fan-in, "weight" vectors close to 1,
    other vectors close to 0.
    """
    tensors = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = noise / noise[0].numel() ** 0.5
        else:
            tensors[name] = 0.1 * noise + float(name.endswith("weight"))
    return tensors


def weights(
    n_state: int = 32,
    n_layer: int = 2,
    n_head: int = 2,
    *,
    n_mels: int = 80,
    n_vocab: int = MULTILINGUAL,
    n_text_layer: int = 2,
    seed: int = 0,
) -> WhisperWeights:
    """Drawn weights; under openai-whisper's full names, as the golden outputs have them."""
    shapes = encoder_shapes(n_mels, n_state, n_layer)
    state = drawn({f"encoder.{name}": shape for name, shape in shapes.items()}, seed)
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    return WhisperWeights(Path("drawn"), state, n_head, n_vocab, n_text_layer)


def write_openai(path: Path, weights: WhisperWeights) -> Path:
    """An openai-whisper `.pt`; of the decoder only what a reader must step over."""
    dims = {
        "n_mels": weights.n_mels,
        "n_audio_ctx": 1500,
        "n_audio_state": weights.n_state,
        "n_audio_head": weights.n_head,
        "n_audio_layer": weights.n_layer,
        "n_vocab": weights.n_vocab,
        "n_text_ctx": 448,
        "n_text_state": weights.n_state,
        "n_text_head": weights.n_head,
        "n_text_layer": weights.n_text_layer,
    }
    state = {f"encoder.{name}": tensor for name, tensor in weights.state.items()}
    state["decoder.positional_embedding"] = torch.zeros(448, weights.n_state)
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path


def write_transformers(
    folder: Path, weights: WhisperWeights, *, shards: int = 1, prefix: str = "model.", pickled: bool = False
) -> Path:
    """A folder as `WhisperForConditionalGeneration.save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "whisper",
        "activation_function": "gelu",
        "encoder_attention_heads": weights.n_head,
        "vocab_size": weights.n_vocab,
        "decoder_layers": weights.n_text_layer,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        f"{prefix}encoder.{transformers_name(name)}": t.contiguous() for name, t in weights.state.items()
    }
    tensors[f"{prefix}decoder.layer_norm.weight"] = torch.ones(weights.n_state)
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        weight_map = {tensor: names[i % shards] for i, tensor in enumerate(sorted(tensors))}
        for name in names:
            save_file({t: tensors[t] for t, shard in weight_map.items() if shard == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


_CTRANSLATE2_TYPES = {
    torch.float32: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.float16: 4,
    torch.bfloat16: 5,
}


def write_ctranslate2(folder: Path, weights: WhisperWeights, dtype: torch.dtype = torch.float16) -> Path:
    """A folder as ct2-transformers-converter writes it; int8 has a scale for each row."""
    state = weights.state
    variables = {
        "decoder/embeddings/weight": torch.zeros(weights.n_vocab, 1, dtype=torch.float16),
        "encoder/num_heads": torch.tensor(weights.n_head, dtype=torch.int16),
        "encoder/position_encodings/encodings": state["positional_embedding"],
        "encoder/layer_norm/gamma": state["ln_post.weight"],
        "encoder/layer_norm/beta": state["ln_post.bias"],
    }
    for i in range(weights.n_text_layer):
        variables[f"decoder/layer_{i}/ffn/linear_0/weight"] = torch.full((1,), 7.0 + i)
    for conv in ("conv1", "conv2"):
        variables |= {f"encoder/{conv}/{part}": state[f"{conv}.{part}"] for part in ("weight", "bias")}
    for i in range(weights.n_layer):
        ours, theirs = f"blocks.{i}.", f"encoder/layer_{i}/"
        qkv = [state[f"{ours}attn.{name}.weight"] for name in ("query", "key", "value")]
        q_bias, v_bias = state[f"{ours}attn.query.bias"], state[f"{ours}attn.value.bias"]
        variables[f"{theirs}self_attention/linear_0/weight"] = torch.cat(qkv)
        variables[f"{theirs}self_attention/linear_0/bias"] = torch.cat(
            [q_bias, torch.zeros_like(q_bias), v_bias]
        )
        for part in ("weight", "bias"):
            variables[f"{theirs}self_attention/linear_1/{part}"] = state[f"{ours}attn.out.{part}"]
            variables[f"{theirs}ffn/linear_0/{part}"] = state[f"{ours}mlp.0.{part}"]
            variables[f"{theirs}ffn/linear_1/{part}"] = state[f"{ours}mlp.2.{part}"]
        for norm, layer in (("attn_ln", "self_attention"), ("mlp_ln", "ffn")):
            variables[f"{theirs}{layer}/layer_norm/gamma"] = state[f"{ours}{norm}.weight"]
            variables[f"{theirs}{layer}/layer_norm/beta"] = state[f"{ours}{norm}.bias"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(ctranslate2_bytes(_as_stored(variables, dtype)))
    return folder


def _as_stored(variables: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in variables.items():
        if not tensor.is_floating_point() or name.startswith("decoder"):
            stored[name] = tensor
        elif dtype.is_floating_point:
            stored[name] = tensor.to(dtype)
        elif name.endswith("weight"):
            limit, dims = (127, tuple(range(1, tensor.ndim))) if dtype == torch.int8 else (1024, None)
            scale = limit / tensor.abs().amax(dims, keepdim=dims is not None)
            stored[name] = (tensor * scale).round().to(dtype)
            stored[f"{name}_scale"] = scale.flatten() if scale.ndim else scale
        else:
            stored[name] = tensor
    return stored


def ctranslate2_bytes(
    variables: dict[str, Tensor], *, version: int = 6, specification: str = "WhisperSpec"
) -> bytes:
    """The file's bytes; equal variables are stored once, as the converter does it."""

    def text(name: str) -> bytes:
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    first_with: dict[tuple, str] = {}
    aliases, body = [], []
    for name, tensor in sorted(variables.items()):
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        known = first_with.setdefault((tensor.shape, tensor.dtype, content), name)
        if known != name and tensor.ndim:
            aliases.append(text(name) + text(known))
            continue
        shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        kind = struct.pack("<BI", _CTRANSLATE2_TYPES[tensor.dtype], len(content))
        body.append(text(name) + shape + kind + content)
    head = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(body))
    return head + b"".join(body) + struct.pack("<I", len(aliases)) + b"".join(aliases)
