"""Every file format, as users have it; and files that are cut, foreign or hostile."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_soundclip.encoders.whisper import WhisperEncoder
from llava_soundclip.encoders.whisper.formats import read_checkpoint
from llava_soundclip.encoders.whisper.weights import WhisperWeights, encoder_shapes
from tests.encoders.fake_whisper import (
    ENGLISH,
    MULTILINGUAL,
    ctranslate2_bytes,
    weights,
    write_ctranslate2,
    write_openai,
    write_transformers,
)

WRITERS = {
    "openai .pt": lambda folder, w: write_openai(folder / "x.pt", w),
    "transformers": lambda folder, w: write_transformers(folder, w),
    "transformers, no head": lambda folder, w: write_transformers(folder, w, prefix=""),
    "transformers, in shards": lambda folder, w: write_transformers(folder, w, shards=3),
    "transformers, pytorch_model.bin": lambda folder, w: write_transformers(folder, w, pickled=True),
    "ctranslate2": lambda folder, w: write_ctranslate2(folder, w),
    "ctranslate2, float32": lambda folder, w: write_ctranslate2(folder, w, torch.float32),
    "ctranslate2, model.bin": lambda folder, w: write_ctranslate2(folder, w) / "model.bin",
}


def half(full: WhisperWeights) -> WhisperWeights:
    return replace(full, state={name: tensor.half() for name, tensor in full.state.items()})


@pytest.mark.parametrize("writer", WRITERS)
def test_formats_give_the_same(tmp_path, writer):
    original = half(weights(n_vocab=ENGLISH, n_text_layer=3))  # as the released files: float16 holds it
    read = read_checkpoint(str(WRITERS[writer](tmp_path, original)))
    assert read.state.keys() == original.state.keys()
    for name, tensor in original.state.items():
        assert torch.equal(read.state[name].half(), tensor), name
    assert (read.n_head, read.n_vocab, read.n_text_layer) == (2, ENGLISH, 3)
    assert read.identity == original.identity


def test_float32_and_float16_files_have_one_identity(tmp_path):
    full = weights()
    files = [write_transformers(tmp_path / "a", full), write_ctranslate2(tmp_path / "b", full)]
    assert {read_checkpoint(file).identity for file in files} == {full.identity}


def test_equal_tensors_are_stored_once(tmp_path):
    """The converter writes one variable, and names that stand for it."""
    same = weights()
    state = {**same.state, "blocks.1.mlp.0.weight": same.state["blocks.0.mlp.0.weight"]}
    read = read_checkpoint(write_ctranslate2(tmp_path, replace(same, state=state)))
    assert torch.equal(
        read.state["blocks.1.mlp.0.weight"].float(), state["blocks.1.mlp.0.weight"].half().float()
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.int8, 1e-2), (torch.int16, 2e-3)]
)
def test_rounded_weights(tmp_path, dtype, tolerance):
    original = weights()
    read = read_checkpoint(write_ctranslate2(tmp_path, original, dtype))
    for name, tensor in original.state.items():
        assert (read.state[name].float() - tensor).norm() <= tolerance * tensor.norm(), name


def test_folder_that_transformers_wrote(tmp_path):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=128,
        pad_token_id=1,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    encoder = WhisperEncoder(read_checkpoint(tmp_path))
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.model.encoder(mel).last_hidden_state
        *_, last = encoder.tower.states(mel, 1500)
        assert torch.allclose(encoder.tower.ln_post(last), theirs, atol=1e-5)


def test_file_that_openai_whisper_wrote(tmp_path):
    model = pytest.importorskip("whisper.model")
    dims = model.ModelDimensions(128, 1500, 32, 2, 2, 60, 8, 32, 2, 1)
    theirs = model.Whisper(dims).eval()
    torch.save({"dims": vars(dims), "model_state_dict": theirs.state_dict()}, tmp_path / "x.pt")
    encoder = WhisperEncoder(read_checkpoint(tmp_path / "x.pt"))
    mel = torch.randn(1, 128, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        *_, last = encoder.tower.states(mel, 1500)
        assert torch.allclose(encoder.tower.ln_post(last), theirs.encoder(mel), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "n_mels", "n_vocab", "n_text_layer", "variant"),
    [
        ((384, 4), 80, MULTILINGUAL, 4, "tiny"),
        ((384, 4), 80, ENGLISH, 4, "tiny.en"),
        ((512, 6), 80, MULTILINGUAL, 6, "base"),
        ((768, 12), 80, ENGLISH, 12, "small.en"),
        ((1024, 24), 80, MULTILINGUAL, 24, "medium"),
        ((1280, 32), 80, MULTILINGUAL, 32, "large"),
        ((1280, 32), 128, 51_866, 32, "large-v3"),
        ((1280, 32), 128, 51_866, 4, "turbo"),
        ((1280, 32), 128, 51_866, 2, "large-v3"),  # a distilled decoder on large-v3's encoder
        ((64, 3), 80, MULTILINGUAL, 3, "whisper-64x3"),
    ],
)
def test_variant_is_read_from_the_weights(sizes, n_mels, n_vocab, n_text_layer, variant):
    state = {
        name: torch.empty(shape, device="meta") for name, shape in encoder_shapes(n_mels, *sizes).items()
    }
    assert WhisperWeights(Path("x"), state, sizes[0] // 64, n_vocab, n_text_layer).variant == variant


def test_identity_tells_trainings_apart():
    tuned = weights()
    last = tuned.state["blocks.1.attn.value.weight"]
    other = replace(tuned, state={**tuned.state, "blocks.1.attn.value.weight": last * 1.01})
    assert weights().identity == tuned.identity != other.identity != weights(seed=1).identity


class Hostile:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["x.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, name, zipped):
    write_transformers(tmp_path, weights())
    (tmp_path / "model.safetensors").unlink()
    harm = tmp_path / "harm"
    torch.save(
        {"dims": {}, "model_state_dict": Hostile(harm)},
        tmp_path / name,
        _use_new_zipfile_serialization=zipped,
    )
    checkpoint = tmp_path / name if name.endswith(".pt") else tmp_path
    with pytest.raises(ValueError, match=f"{name} holds more than tensors.*refused"):
        read_checkpoint(checkpoint)
    assert not harm.exists()


@pytest.mark.parametrize("part", [0, 0.001, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize(
    "writer", ["openai .pt", "transformers", "transformers, pytorch_model.bin", "ctranslate2"]
)
def test_cut_files(tmp_path, writer, part):
    checkpoint = WRITERS[writer](tmp_path, weights())
    large = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = large.read_bytes()
    large.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=large.name):
        read_checkpoint(checkpoint)


def test_cut_anywhere_in_the_list(tmp_path):
    file = write_ctranslate2(tmp_path, weights(n_state=2, n_layer=1, n_head=1, n_vocab=3)) / "model.bin"
    content = file.read_bytes()
    for length in [*range(400), *range(400, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="model.bin"):
            read_checkpoint(file)


def changed(tmp_path: Path, **tensors: torch.Tensor | None) -> Path:
    """A `.pt` with some tensors replaced, or taken away."""
    path = write_openai(tmp_path / "x.pt", weights())
    content = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        if tensor is None:
            del content["model_state_dict"][name]
        else:
            content["model_state_dict"][name] = tensor
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoder.conv1.weight": None}, "holds no Whisper encoder"),
        ({"encoder.conv1.weight": torch.zeros(3)}, "holds no Whisper encoder"),
        ({"encoder.ln_post.bias": None}, r"ln_post.bias is missing, expected \(32,\)"),
        ({"encoder.conv2.bias": torch.zeros(31)}, r"conv2.bias is \(31,\), expected \(32,\)"),
        ({"encoder.blocks.7.mlp.2.bias": torch.zeros(32)}, "doesn't hold a whole Whisper encoder"),
        ({"encoder.adapter": torch.zeros(2)}, r"adapter is \(2,\), expected no such tensor"),
        ({"encoder.positional_embedding": torch.zeros(1000, 32)}, r"expected \(1500, 32\)"),
        ({"encoder.ln_post.bias": torch.zeros(32, dtype=torch.int32)}, "aren't floats"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_tensors_than_whispers(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(changed(tmp_path, **tensors))


def test_foreign_files(tmp_path):
    def refused(checkpoint: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_checkpoint(checkpoint)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither config.json .* nor model.bin")
    (tmp_path / "note.pt").write_text("not a checkpoint")
    refused(tmp_path / "note.pt", "note.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", r"other.pt isn't an openai-whisper checkpoint: it holds \['state_dict'\]")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    refused(tmp_path / "tensor.pt", "holds a Tensor")
    torch.save({"dims": {"n_vocab": "many"}, "model_state_dict": {}}, tmp_path / "dims.pt")
    refused(tmp_path / "dims.pt", "n_audio_head None")
    write_openai(tmp_path / "heads.pt", weights())
    content = torch.load(tmp_path / "heads.pt", weights_only=True)
    content["dims"]["n_audio_head"] = 5
    torch.save(content, tmp_path / "heads.pt")
    refused(tmp_path / "heads.pt", "5 attention heads don't divide a width of 32")

    folder = write_transformers(tmp_path / "folder", weights())
    refused(folder / "model.safetensors", "give its folder")
    config = json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"model_type": "wav2vec2"}, "'wav2vec2', not 'whisper'"),
        ({"activation_function": "relu"}, "'relu'"),
        ({"vocab_size": None}, "vocab_size None"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        refused(folder, message)
    (folder / "config.json").write_text("[1]")
    refused(folder, "holds a list")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is truncated or isn't JSON")
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.decoder.layer_norm.weight": torch.zeros(3)}, folder / "model.safetensors")
    refused(folder, "holds no Whisper encoder")
    (folder / "model.safetensors").unlink()
    refused(folder, "holds none of model.safetensors, .*, pytorch_model.bin")
    index = folder / "model.safetensors.index.json"
    for shards, message in [
        ({"a": "../x.safetensors"}, "of its own folder"),
        ({"a": "gone.safetensors"}, "missing"),
        (3, "of its own folder"),
    ]:
        index.write_text(json.dumps({"weight_map": shards}))
        refused(folder, message)


def test_foreign_ctranslate2(tmp_path):
    def refused(content: bytes, message: str) -> None:
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path)

    refused(ctranslate2_bytes({}, specification="TransformerSpec"), "holds a CTranslate2 TransformerSpec")
    refused(ctranslate2_bytes({}, version=7), "version 7 .* expected 6")
    refused(ctranslate2_bytes({}), "lacks encoder/")
    whole = (write_ctranslate2(tmp_path, weights()) / "model.bin").read_bytes()
    name = b"encoder/conv1/bias\0"
    head = whole.index(name) + len(name)
    assert whole[head] == 1  # its rank; then its length, its type and its bytes
    refused(whole[: head + 5] + b"\x09" + whole[head + 6 :], "unknown type, number 9")
    refused(whole[: head + 1] + b"\x21" + whole[head + 2 :], r"has 64 bytes, but shape \(33,\)")


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(
        ValueError, match="unknown Whisper checkpoint 'huge': give one of tiny, tiny.en, base"
    ):
        read_checkpoint("huge")
    for missing in (tmp_path / "none", str(tmp_path / "none"), "none.pt", "./small", "~/none"):
        with pytest.raises(FileNotFoundError, match="no Whisper checkpoint at"):
            read_checkpoint(missing)


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_openai(tmp_path / "x.pt", weights())
    assert read_checkpoint("~/x.pt").identity == weights().identity
