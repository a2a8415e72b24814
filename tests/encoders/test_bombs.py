"""Checkpoints that ask for more memory than they have bytes, and weights that aren't numbers."""

import struct
import zipfile
from dataclasses import replace

import pytest
import torch

from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.checkpoints import read_tensors, unpickle_tensors
from llava_soundclip.encoders.whisper.formats import read_checkpoint
from llava_soundclip.encoders.whisper.weights import encoder_shapes
from tests.encoders import fake_whisper
from tests.encoders.fake_whisper import write_ctranslate2, write_openai


def test_one_number_in_place_of_many_is_refused(tmp_path):
    wide = {
        f"encoder.{name}": torch.zeros(1).expand(shape)
        for name, shape in encoder_shapes(80, 50_000, 1).items()
    }
    dims = {"n_audio_head": 2, "n_vocab": 51_865, "n_text_layer": 2}
    torch.save({"dims": dims, "model_state_dict": wide}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 20_000
    with pytest.raises(
        ValueError, match=r"w\.pt holds a tensor of shape .* whose numbers aren't all in the file"
    ):
        load_encoder("whisperclip", checkpoint=tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(1).expand(1000, 1000),
        torch.arange(10.0).unfold(0, 5, 1),
        torch.zeros(3, 3).to_sparse(),
        torch.empty(10**6, device="meta"),
    ],
    ids=["stride 0", "overlapping", "sparse", "meta"],
)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_their_numbers_are_refused(tmp_path, content, packed):
    torch.save({"a": {"b": [content]}}, tmp_path / "w.pt", _use_new_zipfile_serialization=packed)
    with pytest.raises(ValueError, match="refused"):
        unpickle_tensors(tmp_path / "w.pt")


def test_many_names_for_the_same_numbers_are_refused(tmp_path):
    one = torch.randn(300, 300)
    torch.save({f"layer.{n}": one for n in range(4)}, tmp_path / "tied.pt")
    assert len(read_tensors(tmp_path / "tied.pt")) == 4  # tied weights are common
    torch.save({f"layer.{n}": one for n in range(50)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="tensors of 18000000 bytes that are the same"):
        read_tensors(tmp_path / "w.pt")


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert (tmp_path / "packed.pt").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"packed\.pt is compressed, and unpacks to 4\d{6} bytes"):
        read_tensors(tmp_path / "packed.pt")


def test_a_dict_that_holds_itself_is_read(tmp_path):
    circle = {"a": torch.ones(2)}
    circle["self"] = circle
    torch.save(circle, tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.pt")["a"].tolist() == [1, 1]


def test_a_number_of_heads_that_is_a_billion_lists_is_not_shown_whole(tmp_path):
    laughs: list = ["ha"]
    for _ in range(30):
        laughs = [laughs, laughs]
    torch.save({"dims": {"n_audio_head": laughs}, "model_state_dict": {}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="expected a whole number") as caught:
        read_checkpoint(tmp_path / "w.pt")
    assert len(str(caught.value)) < 1000


def test_many_aliases_of_ctranslate2_are_refused(tmp_path):
    made = fake_whisper.weights(n_state=64, n_layer=1, n_head=1)
    file = write_ctranslate2(tmp_path, made) / "model.bin"
    assert read_checkpoint(file).n_layer == 1
    content = file.read_bytes()
    names = ["self_attention/layer_norm/gamma", "self_attention/layer_norm/beta", "ffn/layer_norm/gamma"]
    names += ["ffn/layer_norm/beta"]
    names += [
        f"{part}/linear_{n}/{kind}"
        for part in ("self_attention", "ffn")
        for n in (0, 1)
        for kind in ("weight", "bias")
    ]

    def text(name):
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    aliases = [
        (f"encoder/layer_{n}/{name}", f"encoder/layer_0/{name}") for n in range(1, 2000) for name in names
    ]
    assert content.endswith(struct.pack("<I", 0))
    packed = b"".join(text(alias) + text(name) for alias, name in aliases)
    file.write_bytes(content[:-4] + struct.pack("<I", len(aliases)) + packed)
    with pytest.raises(ValueError, match="many names for the same numbers"):
        read_checkpoint(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    made = fake_whisper.weights()
    bad = {**made.state, "blocks.0.mlp.0.weight": made.state["blocks.0.mlp.0.weight"].clone()}
    bad["blocks.0.mlp.0.weight"][3, 4] = value
    file = write_openai(tmp_path / "w.pt", replace(made, state=bad))
    with pytest.raises(ValueError, match="the weights of whisperclip hold NaN or infinity in 1 tensors"):
        load_encoder("whisperclip", checkpoint=file)


def test_vectors_that_are_no_numbers_are_refused(tiny_encoder, monkeypatch):
    monkeypatch.setattr(
        type(tiny_encoder), "_embed", lambda self, waves: torch.full((len(waves), self.dim), torch.nan)
    )
    with pytest.raises(ValueError, match="makes NaN or infinity of it"):
        tiny_encoder.embed([torch.ones(100)], 16_000)
