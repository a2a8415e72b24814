"""Requests to the judge's server: rate limits, retries of temporary errors, and early failure on permanent ones."""

import asyncio
import random
import time
import zlib
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any

from llava_soundclip._extras import require
from llava_soundclip.messages import scrub

_FIRST_WAIT = 0.5  # seconds before the first retry, doubled for each further one
_LONGEST_WAIT = 30.0  # seconds, limit of the doubling
_LONGEST_ASKED = 120.0  # longest wait in seconds that a server may ask for; beyond it the run ends
_LONGEST_ANSWER = 2**22  # bytes, unpacked; six scores take 100
_LONGEST_SHOWN = 2**14  # characters of a server's text that are looked at


class NoAnswer(Exception):
    """A request got no answer, in spite of the retries; the next request may."""


class Rejected(Exception):
    """The server rejects this request; the message has its reason.

    Attributes:
        filtered: whether the server's content filter rejected it.
    """

    def __init__(self, reason: str, *, filtered: bool) -> None:
        super().__init__(reason)
        self.filtered = filtered


class _Redirected(Exception):
    """The server sends the request to another server, with the captions and pictures in it."""


class _TooLong(Exception):
    """An answer is longer than any judge's."""


def open_client(openai: Any, address: str, key: str, timeout: float) -> Any:
    """An `openai.AsyncOpenAI` without retries, which follows no redirect to another server and bounds the answers.

    Raises:
        ValueError: if the address isn't one.
    """
    httpx = _http_library(openai)
    try:
        home = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"the judge's address {scrub(address)} isn't one: {error}") from error
    if home.scheme not in ("http", "https") or not home.host:
        raise ValueError(f"the judge's address {scrub(address)} must begin with http:// or https://")

    async def check_host(request: Any) -> None:
        url = request.url
        upgraded = (home.scheme, url.scheme) == ("http", "https")
        if url.host != home.host or (not upgraded and (url.scheme, url.port) != (home.scheme, home.port)):
            raise _Redirected(
                f"it redirects to {url.scheme}://{url.host}, where nothing was sent: give that address if you trust it"
            )

    async def bound(response: Any) -> None:
        """Replace the body by its unpacked bytes, read up to a limit."""
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise httpx.DecodingError(f"the answer is in {packed}, which wasn't asked for")
        unpacker = zlib.decompressobj(47) if packed not in ("identity", "") else None  # 47: gzip or zlib
        body = bytearray()
        stream = response.stream
        try:
            async for chunk in stream:
                room = _LONGEST_ANSWER + 1 - len(body)
                body += chunk[:room] if unpacker is None else unpacker.decompress(chunk, room)
                if len(body) > _LONGEST_ANSWER:
                    raise _TooLong(f"an answer is longer than {_LONGEST_ANSWER >> 20} MiB")
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer can't be unpacked: {error}") from error
        finally:
            await stream.aclose()
        response.headers.pop("content-encoding", None)
        response.stream = httpx.ByteStream(bytes(body))

    connection = openai.DefaultAsyncHttpxClient(
        headers={"accept-encoding": "gzip, deflate"},
        event_hooks={"request": [check_host], "response": [bound]},
    )
    return openai.AsyncOpenAI(
        api_key=key, base_url=address, timeout=timeout, max_retries=0, http_client=connection
    )


def _http_library(openai: Any) -> Any:
    """The library that this openai sends requests with: httpx, or its successor of the same interface."""
    client = next(cls for cls in openai.DefaultAsyncHttpxClient.__mro__ if cls.__name__ == "AsyncClient")
    return import_module(client.__module__.partition(".")[0])


class Pace:
    """Spaces requests evenly, so that neither of two limits is exceeded in any minute.

    Args:
        requests_per_minute: maximum number of requests; None for no limit.
        tokens_per_minute: maximum number of tokens; None for no limit.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._free_at = 0.0

    async def turn(self, tokens: int) -> None:
        """Wait until a request with this number of tokens may be sent."""
        while (wait := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._free_at = time.monotonic() + max(self._per_request, tokens * self._per_token)

    def pause(self, seconds: float) -> None:
        """Hold back all requests for a number of seconds: a server's limit applies to all."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)


class Server:
    """An OpenAI-compatible server.

    Every attempt, including retries, waits for its turn. The client's own retries are therefore off.

    Args:
        client: see `open_client`.
        pace: pace of the requests.
        timeout: seconds for a whole answer.
        max_retries: further attempts after a failure.
        options: options of every request, such as the model.
        secrets: texts that are hidden in whatever the server says.
    """

    def __init__(
        self,
        client: Any,
        pace: Pace,
        *,
        timeout: float,
        max_retries: int,
        options: dict[str, Any],
        secrets: Sequence[str] = (),
    ) -> None:
        self._secrets = secrets
        self._complete = (
            client.chat.completions.create
        )  # imports modules now, so that no timeout runs meanwhile
        self._pace = pace
        self._timeout = timeout
        self._max_retries = max_retries
        self._options = options
        self._openai = require("openai", extra="evaluation")

    async def ask(self, messages: list[dict[str, Any]], tokens: int) -> Any:
        """Send one request.

        Returns:
            The completion; None if the response isn't JSON.

        Raises:
            NoAnswer: if every attempt failed.
            Rejected: if the server rejects this request.
            RuntimeError: if it rejects all requests, such as without a valid key.
        """
        attempt = 0
        while True:
            await self._pace.turn(tokens)
            try:
                # A timeout for the whole answer: the client's own is per read, and a slow trickle never exceeds it.
                return await asyncio.wait_for(self._create(messages), self._timeout)
            except (
                asyncio.TimeoutError,
                self._openai.APIConnectionError,
                _Redirected,
                _TooLong,
            ) as error:
                reason = self._words(error)
                cause = error.__cause__ or error  # old versions of openai wrap all errors
                if isinstance(cause, _Redirected):
                    raise RuntimeError(f"the judge's server isn't asked: {cause}") from error  # noqa: TRY004
                if isinstance(cause, _TooLong):
                    raise NoAnswer(str(cause)) from error
                wait = None
            except self._openai.APIStatusError as error:
                reason = self._words(error)
                self._give_up(error, reason)
                wait = _retry_after(error.response.headers)
            if attempt >= self._max_retries:
                raise NoAnswer(reason)
            if wait is None:
                wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)
                await asyncio.sleep(wait)
            elif wait > _LONGEST_ASKED:
                raise RuntimeError(
                    f"the judge's server asks to wait {wait:.0f} s: run again after that ({reason})"
                )
            else:
                self._pace.pause(wait)
            attempt += 1

    async def _create(self, messages: list[dict[str, Any]]) -> Any:
        try:
            return await self._complete(messages=messages, **self._options)
        except (ValueError, TypeError, RecursionError, self._openai.APIResponseValidationError):
            return None

    def _give_up(self, error: Any, reason: str) -> None:
        """Raise an error if another attempt can't help."""
        code = getattr(error, "code", None)
        if error.status_code in (400, 413, 422):
            raise Rejected(reason, filtered=code == "content_filter") from error
        passes = error.status_code in (408, 409, 429) or error.status_code >= 500
        if not passes or code == "insufficient_quota":
            hint = {401: ": is OPENAI_API_KEY right?", 404: ": is the model's name right?"}
            raise RuntimeError(
                f"the judge's server refuses{hint.get(error.status_code, '')} ({reason})"
            ) from error

    def _words(self, error: Exception) -> str:
        """An error as text for the user."""
        if isinstance(error, asyncio.TimeoutError | self._openai.APITimeoutError):
            return f"no answer within {self._timeout:g} s"
        return self.clean(str(error))

    def clean(self, text: str) -> str:
        """A server's text without the key and the password, which some servers repeat."""
        return scrub(text[:_LONGEST_SHOWN], *self._secrets)


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks us to wait; None if it doesn't, or in an unknown format."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif headers.get("retry-after", "").strip().endswith("GMT"):
            seconds = parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
        else:
            seconds = float(headers["retry-after"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None
