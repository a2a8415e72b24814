"""Names and Hub ids, against a Hub on loopback."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.whisper.formats import HUB_IDS, read_checkpoint
from tests.encoders.fake_whisper import weights, write_ctranslate2, write_transformers
from tests.hub_server import HubServer


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_name_is_openais_repository(hub, tmp_path):
    hub.commit("openai/whisper-tiny.en", files(write_transformers(tmp_path / "x", weights())))
    hub.commit("openai/whisper-tiny.en", {"pytorch_model.bin": b"not asked for", "README.md": b""})
    assert load_encoder("whisper", checkpoint="tiny.en").checkpoint == weights().identity
    assert not hub.asked("GET", "pytorch_model.bin")
    assert not hub.asked("GET", "README.md")


def test_the_paper_asks_for_small_at_least(hub, tmp_path):
    hub.commit("openai/whisper-small", files(write_transformers(tmp_path / "x", weights())))
    assert load_encoder("whisperclip").checkpoint == weights().identity
    by_none = load_encoder("whisperclip", checkpoint=None, backend=None, device=None, dtype=None)
    assert by_none.checkpoint == weights().identity


@pytest.mark.parametrize(
    "write", [write_transformers, write_ctranslate2, lambda *x: write_transformers(*x, shards=2)]
)
def test_a_hub_id_in_any_format(hub, tmp_path, write):
    hub.commit(
        "somebody/tuned-whisper", {"config.json": b"{}"} | files(write(tmp_path / "x", weights(seed=3)))
    )
    assert read_checkpoint("somebody/tuned-whisper").identity == weights(seed=3).identity


def test_a_revision(hub, tmp_path):
    first = hub.commit("somebody/whisper", files(write_transformers(tmp_path / "x", weights(seed=1))))
    hub.commit("somebody/whisper", files(write_transformers(tmp_path / "y", weights(seed=2))))
    assert read_checkpoint("somebody/whisper").identity == weights(seed=2).identity
    assert read_checkpoint("somebody/whisper", revision=first).identity == weights(seed=1).identity


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(
        OSError, match="no file or folder nobody/nothing here, and the Hub didn't provide its config.json"
    ):
        read_checkpoint("nobody/nothing")
    hub.commit("somebody/other", {"config.json": b"{}"})
    with pytest.raises(OSError, match="the Hub didn't provide its model.safetensors or .* or model.bin: "):
        read_checkpoint("somebody/other")


def test_the_cache_is_enough_afterwards(hub, tmp_path, monkeypatch):
    hub.commit("somebody/whisper", files(write_ctranslate2(tmp_path / "x", weights())))
    hub.commit("somebody/whisper", {"config.json": b"{}"})
    assert read_checkpoint("somebody/whisper").identity == weights().identity
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget_connections()
    asked = len(hub.requests)
    assert read_checkpoint("somebody/whisper").identity == weights().identity
    with pytest.raises(OSError, match="the Hub didn't provide its config.json"):
        read_checkpoint("somebody/else")
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("tiny", "openai/whisper-tiny"),
        ("small.en", "openai/whisper-small.en"),
        ("large-v1", "openai/whisper-large"),
        ("large-v3", "openai/whisper-large-v3"),
        ("large", "openai/whisper-large-v3"),
        ("turbo", "openai/whisper-large-v3-turbo"),
    ],
)
def test_names(name, repository):
    assert HUB_IDS[name] == repository


def test_openai_whisper_has_no_other_names():
    whisper = pytest.importorskip("whisper")
    assert set(whisper.available_models()) == set(HUB_IDS)
