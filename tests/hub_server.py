"""A Hugging Face Hub of one process, on loopback: what huggingface_hub needs to fetch and to push a model.

    with HubServer() as hub:
        commit = hub.commit("user/name", {"config.json": b"{}"})
        hub.use(monkeypatch)
        hf_hub_download("user/name", "config.json", cache_dir=tmp_path)

Faults are set as attributes (`hub.break_after = 1000`), and `hub.requests` tells what was asked. It speaks
the plain HTTP protocol, not Xet.
"""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http as http

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass
class Repo:
    """Commits (sha to files), their etags, and branches or tags (name to sha). A token, if set, is asked for."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    etags: dict[str, dict[str, str]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case


class HubServer(contextlib.AbstractContextManager):
    """Repositories in memory, and what goes wrong with them.

    Attributes:
        repos: by "user/name".
        requests: every request, in order.
        status: answer every file request with this HTTP status.
        break_after: cut the connection after so many bytes of a file, `breaks` times.
        lie_about_size: bytes to add to the size that HEAD gives.
        damage: flip a byte in the middle of every file sent.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self.status: int | None = None
        self.break_after: int | None = None
        self.breaks = 1
        self.lie_about_size = 0
        self.damage = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.forget_connections()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point huggingface_hub, which reads its settings at import, here, without waits or Xet."""
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_ETAG_TIMEOUT": 5,
            "HF_HUB_DOWNLOAD_TIMEOUT": 5,
            "DOWNLOAD_CHUNK_SIZE": 1000,  # so that small files have several
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        # huggingface_hub below 1 took a copy.
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
        self.forget_connections()

    @staticmethod
    def forget_connections() -> None:
        """Close huggingface_hub's connections. Below 1, they also keep whether it is offline."""
        (getattr(http, "close_session", None) or http.reset_sessions)()

    def environment(self) -> dict[str, str]:
        """The same for another process."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1",
        }

    def commit(self, repo_id: str, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add or replace files, on top of what `ref` holds. Gives the commit's sha."""
        repo = self.repos.setdefault(repo_id, Repo())
        merged = {**repo.commits.get(repo.refs.get(ref, ""), {}), **files}
        sha = hashlib.sha1(f"{repo_id} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[sha] = merged
        repo.etags[sha] = {name: _etag(name, content) for name, content in merged.items()}
        repo.refs[ref] = sha
        return sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.refs.get(revision, revision)]

    def asked(self, method: str, ending: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and r.path.endswith(ending)]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def _etag(name: str, content: bytes) -> str:
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = {name.lower(): text for name, text in self.headers.items()}
            hub.requests.append(Request(self.command, path, headers))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    if "/resolve/" in path:
                        self._file(path)
                    else:
                        self._send_json(self._api(path, body))
            except _Refused as refused:
                self._send_json(
                    {"error": refused.message},
                    refused.status,
                    {"X-Error-Code": refused.code, "X-Error-Message": refused.message},
                )

        def _send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in (headers or {}).items():
                if text:
                    self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _repo(self, repo_id: str) -> Repo:
            repo = hub.repos.get(repo_id)
            if repo is None:
                raise _Refused(404, "RepoNotFound", "Repository not found")
            if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
                if repo.gated:
                    raise _Refused(403, "GatedRepo", f"Access to model {repo_id} is restricted.")
                raise _Refused(401, "RepoNotFound", "Repository not found")
            return repo

        def _file(self, path: str) -> None:
            repo_id, rest = path[1:].split("/resolve/")
            revision, name = rest.split("/", 1)
            if hub.status is not None:
                raise _Refused(hub.status, message="Set by the test")
            repo = self._repo(repo_id)
            sha = repo.refs.get(revision, revision)
            if sha not in repo.commits:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if name not in repo.commits[sha]:
                raise _Refused(404, "EntryNotFound", "Entry not found")
            content = repo.commits[sha][name]
            etag = repo.etags[sha][name]
            if hub.damage:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

            start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].split("-")[0])
            part = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", sha)
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            lie = hub.lie_about_size if self.command == "HEAD" else 0
            self.send_header("Content-Length", str(len(part) + lie))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.break_after is not None and hub.breaks > 0 and len(part) > hub.break_after:
                hub.breaks -= 1
                self.wfile.write(part[: hub.break_after])
                self.close_connection = True
            else:
                self.wfile.write(part)

        def _api(self, path: str, body: bytes) -> Any:
            if path == "/api/repos/create":
                self._writer()
                ask = json.loads(body)
                repo_id = f"{ask['organization']}/{ask['name']}" if ask.get("organization") else ask["name"]
                hub.repos.setdefault(repo_id, Repo())
                return {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
            if path == "/api/validate-yaml":
                return {"errors": [], "warnings": []}
            if path.endswith(".git/info/lfs/objects/batch"):
                self._writer()
                objects = [
                    {**o, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                return {"transfer": "basic", "objects": objects}
            if path.startswith("/lfs/"):
                oid = path.rsplit("/", 1)[1]
                if hashlib.sha256(body).hexdigest() != oid:
                    raise _Refused(400, message="The upload's sha256 is wrong")
                hub.objects[oid] = body
                return {}
            if path.startswith("/api/models/"):
                owner, name, *rest = path[len("/api/models/") :].split("/")
                return self._model(f"{owner}/{name}", rest, body)
            raise _Refused(404, message=f"The test server has no {path}")

        def _writer(self) -> None:
            if not self.headers.get("Authorization"):
                raise _Refused(401, message="Invalid username or password.")

        def _model(self, repo_id: str, rest: list[str], body: bytes) -> Any:
            repo = self._repo(repo_id)
            action = rest[0] if rest else "revision"
            revision = rest[1] if len(rest) > 1 else "main"
            if action == "preupload":
                self._writer()
                files = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                return {"files": files}
            if action == "commit":
                self._writer()
                added = {}
                for line in body.splitlines():
                    part = json.loads(line)
                    if part["key"] == "file":
                        added[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
                    elif part["key"] == "lfsFile":
                        added[part["value"]["path"]] = hub.objects[part["value"]["oid"]]
                sha = hub.commit(repo_id, added, revision)
                return {
                    "success": True,
                    "commitUrl": f"{hub.endpoint}/{repo_id}/commit/{sha}",
                    "commitOid": sha,
                    "hookOutput": "",
                }
            sha = repo.refs.get(revision, revision)
            if sha not in repo.commits:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return {
                "_id": repo_id,
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repo.token is not None,
                "tags": [],
                "siblings": [{"rfilename": name} for name in repo.commits[sha]],
            }

    return Handler
