"""A projector's files: what is saved comes back bit for bit, and a wrong file says what is wrong with it."""

import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llava_soundclip
from llava_soundclip import Projector

LABELS = {
    "encoder": "whisperclip",
    "checkpoint": "openai/whisper-tiny.en",
    "fusion": "weighted_sum",
    "pooling": "valid",
    "window": "padded",
    "encoder_options": {"amplitude": "int16"},
    "tower": "openai/clip-vit-large-patch14-336",
    "tower_layer": -2,
    "loss": "infonce",
    "layers": 4,
}


@pytest.fixture
def projector() -> Projector:
    torch.manual_seed(0)
    projector = Projector(3, 5, 4, dropout=0.2, **LABELS)
    with torch.no_grad():
        projector.layer_weights.normal_()
    return projector.eval()


@pytest.fixture
def folder(projector: Projector, tmp_path: Path) -> Path:
    projector.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def same_bits(a: Projector, b: Projector) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def metadata_of(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["llava_soundclip"])


def rewrite(
    file: Path,
    change: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None,
    metadata: dict[str, str] | None = None,
    **fields: Any,
) -> None:
    """Save the file again with other tensors, metadata or fields of the config; drop its config.json."""
    config = {**metadata_of(file), **fields}
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata if metadata is not None else {"llava_soundclip": json.dumps(config)})
    file.with_name("config.json").unlink(missing_ok=True)


class TestRoundTrip:
    def test_folder(self, projector: Projector, folder: Path) -> None:
        loaded = Projector.from_pretrained(folder)
        assert same_bits(projector, loaded)
        assert loaded.config == projector.config
        assert not loaded.training
        assert all(p.requires_grad for p in loaded.parameters())
        z = torch.randn(2, 3)
        assert torch.equal(loaded(z), projector(z))

    def test_bare_file(self, projector: Projector, folder: Path, tmp_path: Path) -> None:
        alone = tmp_path / "elsewhere.safetensors"
        alone.write_bytes((folder / "model.safetensors").read_bytes())
        for source in (alone, str(alone)):
            loaded = Projector.from_pretrained(source)
            assert same_bits(projector, loaded)
            assert loaded.config == projector.config

    def test_config_is_kept_twice(self, projector: Projector, folder: Path) -> None:
        expected = {
            "audio_dim": 3,
            "width": 5,
            "hidden": 4,
            "dropout": 0.2,
            **LABELS,
            "library_version": llava_soundclip.__version__,
        }
        assert projector.config == expected
        assert (folder / "config.json").read_text() == json.dumps(
            expected, indent=2
        ) + "\n"  # one field a line
        assert metadata_of(folder / "model.safetensors") == expected

    def test_either_config_is_enough(self, projector: Projector, folder: Path) -> None:
        config = (folder / "config.json").read_bytes()
        (folder / "config.json").unlink()
        assert Projector.from_pretrained(folder).config == projector.config
        rewrite(folder / "model.safetensors", metadata={})
        (folder / "config.json").write_bytes(config)
        assert Projector.from_pretrained(folder).config == projector.config

    def test_labels_may_be_missing(self, tmp_path: Path) -> None:
        Projector(3, 5, 4, tower_layer=(-2, -5)).save_pretrained(tmp_path)
        loaded = Projector.from_pretrained(tmp_path)
        assert loaded.encoder is None
        assert loaded.tower_layer == [-2, -5]

    def test_saved_twice_gives_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        again = tmp_path / "again"
        Projector.from_pretrained(folder).save_pretrained(again)
        assert sorted(p.name for p in again.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        for file in folder.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes()

    def test_overwrites(self, folder: Path) -> None:
        other = Projector(7, 5, 4).eval()
        other.save_pretrained(folder)
        assert same_bits(Projector.from_pretrained(folder), other)

    def test_files_get_the_usual_permissions(self, folder: Path) -> None:
        plain = folder / "plain"
        plain.touch()
        assert (folder / "model.safetensors").stat().st_mode == plain.stat().st_mode

    def test_interrupted_save_leaves_the_old_weights(
        self, projector: Projector, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Projector(7, 5, 4).save_pretrained(folder)
        assert same_bits(Projector.from_pretrained(folder), projector)
        assert not list(folder.glob(".*"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, projector: Projector, tmp_path: Path, dtype: torch.dtype) -> None:
        z = torch.randn(2, 3)
        expected = projector(z)
        projector.to(dtype).save_pretrained(tmp_path)
        assert same_bits(Projector.from_pretrained(tmp_path, dtype=dtype), projector)
        widened = Projector.from_pretrained(tmp_path)
        assert {p.dtype for p in widened.parameters()} == {torch.float32}
        assert torch.equal(widened.linear1.weight, projector.linear1.weight.float())
        torch.testing.assert_close(widened(z), expected, rtol=0.05, atol=0.05)
        half = Projector.from_pretrained(tmp_path, dtype=torch.float16)(z)
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)

    def test_loading_draws_no_random_numbers(self, folder: Path) -> None:
        state = torch.get_rng_state()
        Projector.from_pretrained(folder)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_loaded_projector_outlives_its_file(self, projector: Projector, folder: Path) -> None:
        loaded = Projector.from_pretrained(folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(bytes(weights.stat().st_size))  # in place, under a mapping
        assert same_bits(projector, loaded)

    def test_says_nothing(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Projector.from_pretrained(folder)
        assert capsys.readouterr() == ("", "")

    def test_home_folder(self, projector: Projector, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder.parent))
        assert same_bits(Projector.from_pretrained("~/saved"), projector)

    def test_model_card(self, folder: Path) -> None:
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "library_name: llava_soundclip" in card
        assert "- soundclip" in card
        assert "| checkpoint | openai/whisper-tiny.en |" in card
        assert "| audio_dim | 3 |" in card
        assert "| amplitude | int16 |" in card and "encoder_options" not in card

    def test_model_card_leaves_out_what_is_unknown(self, tmp_path: Path) -> None:
        Projector(3, 5, 4, encoder="clap").save_pretrained(tmp_path)
        fields = [line.split(" | ")[0] for line in (tmp_path / "README.md").read_text().splitlines()]
        table = [field.removeprefix("| ") for field in fields if field.startswith("| ") and field != "| "]
        assert table == ["audio_dim", "width", "hidden", "dropout", "encoder", "library_version"]

    def test_a_card_of_ones_own_stays(self, projector: Projector, folder: Path) -> None:
        (folder / "README.md").write_text("mine")
        projector.save_pretrained(folder)
        assert (folder / "README.md").read_text() == "mine"


class TestPaths:
    @pytest.fixture(autouse=True)
    def _no_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def request(*args: Any, **kwargs: Any) -> None:
            raise AssertionError(f"asked the Hub for {args}")

        monkeypatch.setattr("llava_soundclip.alignment.files.hf_hub_download", request)

    @pytest.mark.parametrize(
        "source",
        [
            "./projector",
            "../projector",
            "/nowhere/projector",
            "~/nowhere/projector",
            "~nobody/projector",
            "projector",
            "a/b/c",
            "user/projector.safetensors",
            "user/pytorch_model.bin",
            "folder\\projector",
            "user/",
            "user/a name",
            Path("user/projector"),
        ],
    )
    def test_a_missing_path_is_no_hub_id(self, source: str | Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="is no folder or file here, and a Hub id has the form"):
            Projector.from_pretrained(source)

    @pytest.mark.parametrize("source", ["user/projector", "user/projector-v1.5", "user/whisper.clip_2"])
    def test_a_hub_id_is_one(self, source: str) -> None:
        with pytest.raises(OSError, match=f"asked the Hub for \\('{source}', 'model.safetensors'\\)"):
            Projector.from_pretrained(source)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no model.safetensors. Projector.save"):
            Projector.from_pretrained(tmp_path)

    def test_weights_that_are_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").mkdir()
        with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
            Projector.from_pretrained(tmp_path)


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


class TestPickles:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "executed"

    @pytest.fixture(params=[pickle.dumps, lambda bomb: _torch_bytes(bomb)], ids=["pickle", "torch"])
    def bomb(self, request: pytest.FixtureRequest, marker: Path) -> bytes:
        return request.param(Bomb(marker))

    def test_the_bomb_works(self, marker: Path) -> None:
        pickle.loads(pickle.dumps(Bomb(marker)))
        assert marker.exists()

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "projector.ckpt"])
    def test_in_a_folder(self, folder: Path, bomb: bytes, marker: Path, name: str) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(bomb)
        with pytest.raises(FileNotFoundError, match=f"{name} may hold a pickle, which is never opened"):
            Projector.from_pretrained(folder)
        assert not marker.exists()

    def test_in_a_file(self, bomb: bytes, tmp_path: Path, marker: Path) -> None:
        file = tmp_path / "projector.pt"
        file.write_bytes(bomb)
        with pytest.raises(ValueError, match=r"projector.pt isn't a .safetensors file, and nothing else"):
            Projector.from_pretrained(file)
        assert not marker.exists()

    def test_under_a_false_name(self, bomb: bytes, folder: Path, marker: Path) -> None:
        (folder / "model.safetensors").write_bytes(bomb)
        (folder / "config.json").unlink()
        with pytest.raises(ValueError, match="isn't a whole safetensors file"):
            Projector.from_pretrained(folder)
        assert not marker.exists()

    def test_as_config(self, bomb: bytes, folder: Path, marker: Path) -> None:
        (folder / "config.json").write_bytes(bomb)
        with pytest.raises(ValueError, match=r"config.json isn't valid JSON"):
            Projector.from_pretrained(folder)
        assert not marker.exists()


def _torch_bytes(value: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class TestBrokenFiles:
    @pytest.fixture
    def file(self, folder: Path) -> Path:
        return folder / "model.safetensors"

    def refused(self, file: Path, *parts: str) -> str:
        with pytest.raises(ValueError) as error:
            Projector.from_pretrained(file)
        for part in (str(file), *parts):
            assert part in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
    def test_cut(self, file: Path, keep: int) -> None:
        file.write_bytes(file.read_bytes()[:keep])
        self.refused(
            file, "isn't a whole safetensors file", "truncated, damaged or in another format", "again"
        )

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0, 2])
    def test_absurd_header_length(self, file: Path, length: int) -> None:
        file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
        self.refused(file, "isn't a whole safetensors file")

    @pytest.mark.parametrize(
        "content", [b"PK\x03\x04" + bytes(100), b"GGUF" + bytes(100), b"<html>not found</html>", bytes(1000)]
    )
    def test_another_format(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        self.refused(file, "isn't a whole safetensors file")

    def test_bytes_after_the_end(self, file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"x")
        self.refused(file, "isn't a whole safetensors file")

    def test_header_that_claims_more_than_there_is(self, file: Path) -> None:
        header = {"linear1.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
        self.refused(file, "isn't a whole safetensors file")

    def test_no_metadata(self, file: Path) -> None:
        rewrite(file, metadata={})
        self.refused(
            file, "isn't a projector of llava_soundclip", "has no 'llava_soundclip'", "no config.json"
        )

    def test_metadata_of_others(self, file: Path) -> None:
        rewrite(file, metadata={"format": "pt"})
        self.refused(file, "isn't a projector of llava_soundclip")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "{'audio_dim': 3}",
            '{"dropout": NaN}',
            "[" * 100_000,
            '{"audio_dim": ' + "9" * 10_000 + "}",
        ],
    )
    def test_metadata_that_is_no_json(self, file: Path, text: str) -> None:
        rewrite(file, metadata={"llava_soundclip": text})
        self.refused(file, "isn't valid JSON")

    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
    def test_python_constants_are_no_json(self, file: Path, constant: str) -> None:
        rewrite(file, metadata={"llava_soundclip": f'{{"dropout": {constant}}}'})
        self.refused(file, f"isn't valid JSON ({constant} isn't JSON)")

    @pytest.mark.parametrize("text", ["[]", "3", "null", '"audio_dim"', "{}"])
    def test_metadata_that_is_no_config(self, file: Path, text: str) -> None:
        rewrite(file, metadata={"llava_soundclip": text})
        self.refused(file, "missing audio_dim, hidden, width")

    def test_config_from_the_future(self, file: Path) -> None:
        rewrite(file, library_version="9.0", gate="sigmoid")
        self.refused(file, "says version '9.0'", "unknown gate", llava_soundclip.__version__)

    @pytest.mark.parametrize("key", ["self", "config", "args"])
    def test_config_with_python_names(self, file: Path, key: str) -> None:
        rewrite(file, **{key: {}})
        self.refused(file, f"unknown {key}")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"audio_dim": "3"}, "audio_dim must be an int from 1 to 1048576, got '3'"),
            ({"audio_dim": 3.0}, "audio_dim must be an int"),
            ({"width": None}, "width must be an int"),
            ({"hidden": True}, "hidden must be an int"),
            ({"hidden": -4}, "hidden must be an int"),
            ({"hidden": 0}, "hidden must be an int"),
            ({"width": 10**12}, "width must be an int from 1 to 1048576, got 1000000000000"),
            ({"layers": [1]}, "layers must be an int"),
            ({"dropout": 1.5}, "dropout must be a number"),
            ({"dropout": None}, "dropout must be a number"),
            ({"encoder": {"a": 1}}, "encoder must be a string"),
            ({"tower_layer": {"a": 1}}, "tower_layer must be"),
            ({"fusion": "average_all"}, "layers goes with fusion='weighted_sum'"),
        ],
    )
    def test_config_of_wrong_types(self, file: Path, fields: dict[str, Any], message: str) -> None:
        rewrite(file, **fields)
        self.refused(file, "The config of", "is wrong", message)

    def test_enormous_dims_are_refused_before_allocating(self, file: Path) -> None:
        # Allowed widths, but a matrix of 4 TiB: the shapes in the header are compared first.
        rewrite(file, audio_dim=2**20, hidden=2**20, width=2**20)
        self.refused(
            file, "don't fit its config", "linear1.weight is F32 [4, 3], expected floats [1048576, 1048576]"
        )

    def test_missing_tensor(self, file: Path) -> None:
        rewrite(file, lambda tensors: tensors.pop("norm2.bias"))
        self.refused(file, "isn't a projector with this config: missing norm2.bias.")

    def test_unexpected_tensor(self, file: Path) -> None:
        rewrite(file, lambda tensors: tensors.update(extra=torch.ones(1)))
        self.refused(file, "isn't a projector with this config: unexpected extra.")

    def test_a_foreign_models_thousand_tensors(self, file: Path) -> None:
        def replace(tensors: dict[str, torch.Tensor]) -> None:
            tensors.clear()
            tensors.update({f"model.layers.{i}.weight": torch.ones(1) for i in range(1000)})

        rewrite(file, replace)
        message = self.refused(
            file, "missing layer_weights", "and 6 more; unexpected model.layers.0", "and 995 more"
        )
        assert len(message) < 1000

    @pytest.mark.parametrize(
        ("count", "listed"), [(5, "t0, t1, t2, t3, t4."), (6, "t0, t1, t2, t3, t4 and 1 more.")]
    )
    def test_five_names_are_listed(self, file: Path, count: int, listed: str) -> None:
        rewrite(file, lambda tensors: tensors.update({f"t{i}": torch.ones(1) for i in range(count)}))
        assert self.refused(file).endswith(f"isn't a projector with this config: unexpected {listed}")

    def test_wrong_shape(self, file: Path) -> None:
        rewrite(
            file,
            lambda tensors: tensors.update({"linear3.bias": torch.ones(6), "norm1.weight": torch.ones(2, 2)}),
        )
        self.refused(
            file,
            "linear3.bias is F32 [6], expected floats [5]",
            "norm1.weight is F32 [2, 2], expected floats [4]",
        )

    def test_wrong_dtype(self, file: Path) -> None:
        rewrite(file, lambda tensors: tensors.update({"linear3.bias": torch.ones(5, dtype=torch.int32)}))
        self.refused(file, "linear3.bias is I32 [5], expected floats [5]")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_none(self, file: Path, value: float) -> None:
        rewrite(file, lambda tensors: tensors["linear2.weight"][1].fill_(value))
        self.refused(file, "holds NaN or infinity as torch.float32 in linear2.weight")

    def test_numbers_too_large_for_half(self, file: Path) -> None:
        rewrite(file, lambda tensors: tensors["linear2.bias"].fill_(1e6))
        assert Projector.from_pretrained(file).linear2.bias[0] == 1e6
        with pytest.raises(ValueError, match="holds NaN or infinity as torch.float16 in linear2.bias"):
            Projector.from_pretrained(file, dtype=torch.float16)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "float32", None])
    def test_refuses_a_dtype(self, file: Path, dtype: Any) -> None:
        with pytest.raises(ValueError, match="dtype must be one of torch.float64, torch.float32"):
            Projector.from_pretrained(file, dtype=dtype)


class TestConfigJson:
    def test_may_be_large(self, projector: Projector, folder: Path) -> None:
        """Up to the limit of 1 MiB, here of spaces."""
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.ljust(2**20))
        assert Projector.from_pretrained(folder).config == projector.config

    def test_has_fields_that_the_metadata_lack(self, folder: Path) -> None:
        config = (folder / "config.json").read_bytes()
        metadata = metadata_of(folder / "model.safetensors")
        del metadata["loss"]
        rewrite(folder / "model.safetensors", metadata={"llava_soundclip": json.dumps(metadata)})
        (folder / "config.json").write_bytes(config)
        with pytest.raises(ValueError, match="disagree on loss: they are from different projectors"):
            Projector.from_pretrained(folder)

    def test_disagrees(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "encoder": "clap", "loss": None}))
        with pytest.raises(ValueError) as error:
            Projector.from_pretrained(folder)
        message = str(error.value)
        assert f"the metadata of {folder}/model.safetensors and {folder}/config.json disagree on" in message
        assert "encoder, loss" in message

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "config.json isn't valid JSON"),
            (b"\xff\xfe\x00", "config.json isn't valid JSON"),
            (b"[" * 100_000, "config.json isn't valid JSON"),
            (b'{"audio_dim": 3}', "config.json isn't the config of a projector.*missing hidden, width"),
            (b"[1]", "missing audio_dim, hidden, width"),
            (b" " * (2**20 + 1), "larger than 1048576 bytes"),
        ],
    )
    def test_broken(self, folder: Path, content: bytes, message: str) -> None:
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Projector.from_pretrained(folder)
