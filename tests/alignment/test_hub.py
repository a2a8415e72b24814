"""Projectors from and to a Hub, a server on loopback: fetched, pushed, and everything that goes wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_soundclip import Projector
from tests.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


@pytest.fixture
def projector() -> Projector:
    torch.manual_seed(0)
    return Projector(20, 30, 40, encoder="whisperclip", checkpoint="tiny.en").eval()


@pytest.fixture
def files(projector: Projector, tmp_path: Path) -> dict[str, bytes]:
    projector.save_pretrained(tmp_path / "saved")
    return {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Projector]:
    def from_pretrained(repo_id: str = "user/projector", **options) -> Projector:
        return Projector.from_pretrained(repo_id, cache_dir=tmp_path / "cache", **options)

    return from_pretrained


def same(a: Projector, b: Projector) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(first[name], second[name]) for name in first | second)


class TestFetch:
    def test_gives_the_same_bits(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        assert same(fetch(), projector)
        # Straight to the weights and their config: nothing else is fetched.
        fetched = {r.path.split("/")[-1] for r in hub.requests if "/resolve/" in r.path}
        assert fetched == {"model.safetensors", "config.json"}

    def test_second_time_from_the_cache(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        fetch()
        fetch()
        assert len(hub.asked("GET", ".safetensors")) == 1
        hub.requests.clear()
        assert same(fetch(local_files_only=True), projector)
        assert not hub.requests
        assert same(fetch(force_download=True), projector)
        assert len(hub.asked("GET", ".safetensors")) == 1

    def test_revision(self, hub, files, fetch, projector, tmp_path: Path) -> None:
        first = hub.commit("user/projector", files)
        hub.commit("user/projector", files, ref="v1.0")
        Projector(20, 30, 40, encoder="clap").save_pretrained(tmp_path / "new")
        hub.commit("user/projector", {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()})
        assert fetch().encoder == "clap"
        assert same(fetch(revision=first), projector)
        assert same(fetch(revision="v1.0"), projector)

    def test_config_is_that_of_the_weights_commit(self, hub, files, fetch, projector) -> None:
        first = hub.commit("user/projector", files)
        fetch()
        assert hub.asked("GET", f"/resolve/{first}/config.json")

    def test_weights_alone_are_enough(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", {"model.safetensors": files["model.safetensors"]})
        assert same(fetch(), projector)

    def test_config_of_another_projector(self, hub, files, fetch) -> None:
        config = {**json.loads(files["config.json"]), "encoder": "clap"}
        hub.commit("user/projector", {**files, "config.json": json.dumps(config).encode()})
        with pytest.raises(ValueError, match="disagree on encoder"):
            fetch()

    def test_token(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        hub.repos["user/projector"].token = "hf_secret"
        assert same(fetch(token="hf_secret"), projector)


class TestBroken:
    def test_goes_on_where_the_connection_broke(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        hub.break_after = 5000
        try:
            loaded = fetch()  # huggingface_hub from 1 on tries again by itself
        except OSError as error:
            assert "'user/projector' isn't in the cache and couldn't be fetched" in str(error)
            loaded = fetch()
        assert same(loaded, projector)
        _, second = hub.asked("GET", ".safetensors")
        start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
        assert 0 < start <= 5000
        assert start % constants.DOWNLOAD_CHUNK_SIZE == 0

    def test_a_connection_that_always_breaks(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        hub.break_after, hub.breaks = 0, 100
        with pytest.raises(OSError, match="'user/projector' isn't in the cache and couldn't be fetched"):
            fetch()
        assert hub.breaks >= 90

    def test_server_errors_are_tried_again(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        hub.status = 500
        with pytest.raises(
            OSError, match="'user/projector' isn't in the cache.* Check the connection"
        ) as error:
            fetch()
        assert "500" in str(error.value)
        assert len(hub.requests) > 1

    def test_server_errors_with_a_copy_in_the_cache(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        fetch()
        hub.status = 500
        assert same(fetch(), projector)
        with pytest.raises(OSError, match="'user/projector'.*500"):
            fetch(force_download=True)

    def test_no_server(self, files, fetch, monkeypatch: pytest.MonkeyPatch) -> None:
        with HubServer() as gone:
            pass
        gone.use(monkeypatch)
        with pytest.raises(
            OSError, match="'user/projector' at revision 'v2' isn't in the cache and couldn't be"
        ):
            fetch(revision="v2")

    def test_wrong_size(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        hub.lie_about_size = 10
        with pytest.raises(OSError, match="'user/projector'.*should be of size"):
            fetch()

    def test_damaged_on_the_way(self, hub, files, fetch, projector) -> None:
        hub.commit("user/projector", files)
        hub.damage = True
        for _ in range(2):  # the cached copy is no better
            with pytest.raises(
                OSError, match="'user/projector' is damaged: its sha256 .* force_download=True"
            ):
                fetch()
        hub.damage = False
        assert same(fetch(force_download=True), projector)

    def test_cut_before_it_was_uploaded(self, hub, files, fetch) -> None:
        hub.commit("user/projector", {**files, "model.safetensors": files["model.safetensors"][:-100]})
        with pytest.raises(ValueError, match="isn't a whole safetensors file"):
            fetch()

    def test_only_a_pickle(self, hub, fetch) -> None:
        hub.commit("user/projector", {"pytorch_model.bin": b"\x80\x04.", "config.json": b"{}"})
        with pytest.raises(FileNotFoundError, match="'user/projector' holds no model.safetensors"):
            fetch()
        assert not hub.asked("GET", "pytorch_model.bin")


class TestRefused:
    """The Hub's own errors are kept, with their types; what it was about and what to do is added."""

    def test_no_such_repository(self, hub, fetch) -> None:
        with pytest.raises(
            RepositoryNotFoundError, match="projector 'user/nowhere'.*needs token= or `hf auth"
        ):
            fetch("user/nowhere")

    def test_no_such_revision(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        with pytest.raises(RevisionNotFoundError, match="projector 'user/projector' at revision 'v9'"):
            fetch(revision="v9")

    @pytest.mark.parametrize("token", [None, False, "hf_wrong"])
    def test_private(self, hub, files, fetch, token) -> None:
        hub.commit("user/projector", files)
        hub.repos["user/projector"].token = "hf_secret"
        with pytest.raises(OSError, match="projector 'user/projector'.*needs token=") as error:
            fetch(token=token)
        assert "401" in str(error.value)
        assert "hf_wrong" not in str(error.value)

    def test_gated(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        hub.repos["user/projector"].token = "hf_secret"
        hub.repos["user/projector"].gated = True
        with pytest.raises(GatedRepoError, match="Access to model user/projector is restricted"):
            fetch()

    def test_unauthorized(self, hub, files, fetch) -> None:
        hub.commit("user/projector", files)
        hub.status = 401
        with pytest.raises(HfHubHTTPError, match="needs token= or `hf auth login`"):
            fetch()

    def test_offline(self, hub, files, fetch, projector, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.commit("user/projector", files)
        for options in ({}, {"local_files_only": True}):
            with monkeypatch.context() as patch:
                patch.setattr(constants, "HF_HUB_OFFLINE", not options)
                hub.forget_connections()
                with pytest.raises(OSError, match="'user/projector'.*HF_HUB_OFFLINE and local_files_only"):
                    fetch(**options)
        assert not hub.requests
        hub.forget_connections()
        fetch()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert same(fetch(), projector)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4's own upload
class TestPush:
    def test_push_and_fetch(self, hub, fetch, projector) -> None:
        url = projector.push_to_hub("user/new", token="hf_secret", commit_message="Add")
        assert "user/new" in url
        assert sorted(hub.files("user/new")) == ["README.md", "config.json", "model.safetensors"]
        assert same(fetch("user/new"), projector)
        assert fetch("user/new").config == projector.config

    def test_push_from_save(self, hub, fetch, projector, tmp_path: Path) -> None:
        projector.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/new", token="hf_secret")
        assert same(fetch("user/new"), projector)

    def test_push_again(self, hub, fetch, projector) -> None:
        projector.push_to_hub("user/new", token="hf_secret")
        with torch.no_grad():
            projector.linear1.bias.fill_(1)
        projector.push_to_hub("user/new", token="hf_secret")
        assert len(hub.repos["user/new"].commits) == 2
        assert same(fetch("user/new"), projector)

    def test_without_a_token(self, hub, projector) -> None:
        with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
            projector.push_to_hub("user/new", token=False)
        assert not hub.repos


@pytest.mark.slow
def test_in_a_process_of_its_own(files: dict[str, bytes], tmp_path: Path) -> None:
    """With the environment variables that users set, and nothing replaced in huggingface_hub."""
    code = "import sys; from llava_soundclip import Projector; print(Projector.from_pretrained(sys.argv[1]).config)"

    def run(hub: HubServer, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, "user/projector"],
            env={**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home"), **environment},
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )

    with HubServer() as hub:
        hub.commit("user/projector", files)
        offline = run(hub, HF_HUB_OFFLINE="1")
        assert offline.returncode == 1
        assert "OSError: The projector 'user/projector' isn't in the cache" in offline.stderr
        assert not hub.requests
        online = run(hub)
        assert online.returncode == 0, online.stderr
        assert "'encoder': 'whisperclip'" in online.stdout
        assert run(hub, HF_HUB_OFFLINE="1").stdout == online.stdout
