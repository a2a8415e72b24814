"""Where checkpoints come from, and what is read of them, for every encoder alike."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file

from llava_soundclip.encoders import checkpoints as module
from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.checkpoints import (
    INDEX,
    Layout,
    check_tensors,
    find_checkpoint,
    read_tensors,
)
from llava_soundclip.fingerprints import fingerprint
from tests.encoders.fake_clap import write_clap
from tests.encoders.fake_imagebind import weights, write_safetensors
from tests.hub_server import HubServer

KNOWN = {"small.pt": "somebody/models/small.pt", "somebody/mirror": "somebody/mirror"}
STATE = {"audio.weight": torch.arange(6.0).reshape(2, 3), "visual.weight": torch.ones(4)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def pickled(tmp_path: Path, content: object) -> bytes:
    torch.save(content, tmp_path / "content")
    return (tmp_path / "content").read_bytes()


def test_the_name_that_docs_showed_still_works():
    from llava_soundclip.encoders import checkpoint_files

    with pytest.warns(
        DeprecationWarning, match=r"find_checkpoint has moved to llava_soundclip.encoders.checkpoints"
    ):
        assert checkpoint_files.find_checkpoint is find_checkpoint
    with pytest.warns(DeprecationWarning, match=r"moved to llava_soundclip.fingerprints.fingerprint"):
        assert checkpoint_files.fingerprint is fingerprint
    with pytest.raises(AttributeError, match="nonsense"):
        _ = checkpoint_files.nonsense


def test_a_known_name_is_a_file_of_a_repository(hub, tmp_path):
    hub.commit("somebody/models", {"small.pt": pickled(tmp_path, STATE), "other.pt": b"not asked for"})
    found = find_checkpoint("small.pt", KNOWN, "Some")
    assert torch.equal(read_tensors(found)["audio.weight"], STATE["audio.weight"])
    assert not hub.asked("GET", "other.pt")


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, "small.pt")
    assert find_checkpoint("small.pt", KNOWN, "Some") == Path("small.pt")


def test_a_name_goes_before_a_folder_where_checkpoints_are_folders(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    hub.commit("somebody/small", {"config.json": b"{}", "model.safetensors": save(STATE)})
    known, layout = {"small": "somebody/small"}, Layout(config="config.json")
    found = find_checkpoint("small", known, "Some", layout=layout)
    assert {file.name for file in found.iterdir()} == {"config.json", "model.safetensors"}
    assert find_checkpoint("./small", known, "Some", layout=layout) == Path("small")


def test_shards_on_the_hub(hub):
    index = json.dumps({"weight_map": {"audio.weight": "a.safetensors"}}).encode()
    hub.commit(
        "somebody/mirror", {INDEX: index, "a.safetensors": save({"audio.weight": STATE["audio.weight"]})}
    )
    assert read_tensors(find_checkpoint("somebody/mirror", KNOWN, "Some")).keys() == {"audio.weight"}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_id_in_either_format(hub, tmp_path, file):
    content = save(STATE) if file.endswith("safetensors") else pickled(tmp_path, STATE)
    hub.commit("somebody/mirror", {file: content})
    assert find_checkpoint("somebody/mirror", KNOWN, "Some").name == file


def test_a_revision(hub):
    first = hub.commit("somebody/mirror", {"model.safetensors": save({"x": torch.zeros(1)})})
    hub.commit("somebody/mirror", {"model.safetensors": save({"x": torch.ones(1)})})
    assert read_tensors(find_checkpoint("somebody/mirror", KNOWN, "Some"))["x"] == 1
    assert read_tensors(find_checkpoint("somebody/mirror", KNOWN, "Some", first))["x"] == 0


def test_the_cache_is_enough_afterwards(hub, tmp_path, monkeypatch):
    hub.commit("somebody/mirror", {"pytorch_model.bin": pickled(tmp_path, STATE)})
    found = find_checkpoint("somebody/mirror", KNOWN, "Some")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget_connections()
    asked = len(hub.requests)
    assert find_checkpoint("somebody/mirror", KNOWN, "Some") == found
    with pytest.raises(OSError, match="no file or folder somebody/else here, and the Hub didn't provide"):
        find_checkpoint("somebody/else", KNOWN, "Some")
    assert len(hub.requests) == asked


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(OSError, match="no file or folder nobody/nothing here"):
        find_checkpoint("nobody/nothing", KNOWN, "Some")
    hub.commit("somebody/models", {"README.md": b""})
    with pytest.raises(OSError, match="the Hub didn't provide its small.pt"):
        find_checkpoint("small.pt", KNOWN, "Some")
    hub.status = 500
    with pytest.raises(OSError, match="the Hub didn't provide its small.pt"):
        find_checkpoint("small.pt", KNOWN, "Some")


def test_encoders_come_from_their_repositories(hub, tmp_path):
    """The names and ids that users write, for the two that the Hub has."""
    clap = write_clap(tmp_path / "clap.pt").read_bytes()
    hub.commit("lukewys/laion_clap", {"630k-audioset-best.pt": clap})
    by_name = load_encoder("clap", checkpoint="630k-audioset-best.pt")
    assert by_name.checkpoint == load_encoder("clap", checkpoint=tmp_path / "clap.pt").checkpoint
    mirror = write_safetensors(tmp_path / "mirror")
    hub.commit("nielsr/imagebind-huge", {"model.safetensors": (mirror / "model.safetensors").read_bytes()})
    assert load_encoder("imagebind").checkpoint == load_encoder("imagebind", checkpoint=mirror).checkpoint


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_inside(tmp_path, wrap, prefix):
    torch.save(wrap({f"{prefix}{name}": tensor for name, tensor in STATE.items()}), tmp_path / "x.pt")
    read = read_tensors(tmp_path / "x.pt", ("audio.",))
    assert read.keys() == {"audio.weight"}
    assert torch.equal(read["audio.weight"], STATE["audio.weight"])


def test_a_training_loops_numbers_do_no_harm(tmp_path):
    """Checkpoints hold numpy's scalars, which torch refuses by itself; they aren't even built."""
    for value in (np.float64(0.5), np.int64(3)):
        torch.save({"state_dict": STATE, "best": value}, tmp_path / "x.pt")
        assert read_tensors(tmp_path / "x.pt").keys() == STATE.keys()
    assert isinstance(module.unpickle_tensors(tmp_path / "x.pt")["best"], module._Ignored)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensors_are_mapped_to_the_file(tmp_path):
    torch.save({**STATE, "large": torch.zeros(10**6)}, tmp_path / "x.pt")
    read = read_tensors(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in Path("/proc/self/maps").read_text()
    assert read["large"].sum() == 0


def test_folders(tmp_path):
    with pytest.raises(ValueError, match="holds none of model.safetensors, .*, pytorch_model.bin"):
        read_tensors(tmp_path)
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path).keys() == {"old"}
    shards = {"audio.weight": "a.safetensors", "visual.weight": "b.safetensors"}
    for name, file in shards.items():
        save_file({name: STATE[name]}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert read_tensors(tmp_path, ("audio.",)).keys() == {"audio.weight"}
    assert read_tensors(tmp_path / INDEX).keys() == STATE.keys()
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path).keys() == STATE.keys()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", save(STATE)[:-3]])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_broken_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_tensors(tmp_path / name)


def test_what_differs_is_named():
    with pytest.raises(
        ValueError, match=r"x doesn't hold a whole Some; 3 tensors differ: a is \(2,\), expected \(3,\)"
    ):
        check_tensors("x", {"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": (3,), "c": (1,)}, "Some")


def test_a_fingerprint_is_of_the_training(tmp_path):
    state = weights()
    halved = {name: tensor.half() for name, tensor in reversed(state.items())}
    assert fingerprint(halved) == fingerprint(state)
    assert fingerprint({**state, "counter": torch.tensor(3)}) == fingerprint(state)
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    assert fingerprint({**state, name: state[name] + 0.01}) != fingerprint(state)
