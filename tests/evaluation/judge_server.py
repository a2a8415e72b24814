"""A judge of one process, on loopback: what the openai client needs, and what may go wrong.

    with JudgeServer(lambda request: scores(fluency=5)) as server:
        Judge("tiny", base_url=server.url).run(captions, "judged.jsonl")

The reply to a request is the script's; `server.requests` tells what was asked, and when.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llava_soundclip.evaluation.judge import DIMENSIONS

USAGE = {"prompt_tokens": 400, "completion_tokens": 40, "total_tokens": 440}


@dataclass
class Reply:
    """What the server does.

    Attributes:
        status: of HTTP.
        body: is sent as it is.
        headers: besides its length and type.
        after: seconds before anything is sent.
        every: seconds before each single byte of the body.
        never: read the request and send nothing.
        cut: close the connection without a reply.
    """

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    every: float = 0.0
    never: bool = False
    cut: bool = False


@dataclass
class Request:
    """What a client asked.

    Attributes:
        raw: the body as it came.
        headers: names in lower case.
        attempt: 1 for the first request with this body.
        at: seconds on the monotonic clock.
    """

    raw: bytes
    headers: dict[str, str]
    attempt: int
    at: float

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        """The user message's text."""
        return self.body["messages"][1]["content"][0]["text"]

    @property
    def caption(self) -> str:
        return self.text.split("<description>\n")[1].split("\n</description>")[0]


def completion(
    content: str | None, *, finish_reason: str = "stop", refusal: str | None = None, usage: Any = USAGE
) -> Reply:
    """An answer in the API's form."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny-2026",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": usage,
    }
    return Reply(body=json.dumps(body).encode())


def scores(default: int = 3, **given: Any) -> Reply:
    """A good answer: `default` in all dimensions that aren't given."""
    return completion(json.dumps({name: default for name in DIMENSIONS} | given))


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in the API's form; the headers' underscores become hyphens."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class JudgeServer(contextlib.AbstractContextManager):
    """See the module.

    Attributes:
        script: the reply to a request.
        requests: every request, in order.
        most_at_once: how many were being answered at a time, at most.
        url: for the client.
    """

    def __init__(self, script: Callable[[Request], Reply] = lambda request: scores()) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._seen: Counter[bytes] = Counter()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextlib.contextmanager
    def _taken(self, raw: bytes, headers: dict[str, str]) -> Iterator[Request]:
        with self._lock:
            self._seen[raw] += 1
            request = Request(raw, headers, self._seen[raw], time.monotonic())
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield request
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else the body waits 40 ms for the headers' acknowledgement

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                with server._taken(raw, {n.lower(): v for n, v in self.headers.items()}) as request:
                    reply = server.script(request)
                    server._closing.wait(reply.after)
                    if reply.never:
                        server._closing.wait()
                    if reply.never or reply.cut:
                        self.close_connection = True
                        return
                # Its place is free before the client has the last byte, and may send the next request.
                with contextlib.suppress(OSError):
                    self._send(reply)

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                headers = {"content-type": "application/json"} | reply.headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                for byte in reply.body if reply.every else ():
                    server._closing.wait(reply.every)
                    self.wfile.write(bytes([byte]))
                if not reply.every:
                    self.wfile.write(reply.body)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
