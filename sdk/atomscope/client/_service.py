"""The service as the calls see it: addresses, the key, retries, and the verdict on an answer."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from atomscope import errors
from atomscope.client._retry import RetryPolicy
from atomscope.client._transport import Body, Transport
from atomscope.client._wire import FileSlice, Outgoing, Reply, Request, check, problem, unreadable
from atomscope.text import visible

T = TypeVar("T")

_MAX_ERROR_BYTES = 1 << 20
_AGENT = f"atomscope-python/{version('atomscope')}"


class Service:
    """Requests to one service with one key, over either transport."""

    def __init__(self, transport: Transport, base_url: str, api_key: str, policy: RetryPolicy) -> None:
        self._transport = transport
        self._base = f"{base_url}/"
        self._key = api_key
        self.policy = policy

    async def send(self, request: Request) -> Reply:
        """Send, with retries; the answer stands (2xx). Raises the subclasses of `APIError`."""
        return check(await self.attempt(request))

    async def attempt(self, request: Request) -> Reply:
        """Send, with retries; the last answer whatever its status. Raises `APIConnectionError`."""
        return await self._persist(self._outgoing(request))

    async def put(self, url: str, part: FileSlice) -> Reply:
        """`PUT` a part of a file to a signed URL, without the key, with retries."""
        content = part if part.size else b""
        headers = {"Content-Length": str(part.size), "User-Agent": _AGENT}
        return check(await self._persist(Outgoing("PUT", self._signed(url), headers, content)))

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[Body]:
        """An answer that stands, its body still to be read; answers that call for it are retried."""
        async with self._opened(self._outgoing(request)) as body:
            yield body

    @asynccontextmanager
    async def download(self, url: str, start: int) -> AsyncGenerator[Body]:
        """A file behind a signed URL from byte `start`, without the key."""
        # Bytes as they are stored: a compressed answer could not be continued.
        headers = {"Accept-Encoding": "identity", "User-Agent": _AGENT}
        if start:
            headers["Range"] = f"bytes={start}-"
        async with self._opened(Outgoing("GET", self._signed(url), headers)) as body:
            yield body

    async def sleep(self, seconds: float) -> None:
        await self._transport.sleep(seconds)

    async def work(self, function: Callable[[], T]) -> T:
        return await self._transport.work(function)

    async def close(self) -> None:
        await self._transport.close()

    async def _persist(self, call: Outgoing) -> Reply:
        attempt = 0
        while True:
            try:
                reply = await self._transport.send(call)
            except errors.APIConnectionError:
                if attempt >= self.policy.max_retries:
                    raise
                pause: float | None = self.policy.pause(attempt)
            else:
                pause = self._pause(reply, attempt)
                if pause is None:
                    return replace(reply, attempts=attempt + 1)
            await self._transport.sleep(pause)
            attempt += 1

    @asynccontextmanager
    async def _opened(self, call: Outgoing) -> AsyncGenerator[Body]:
        attempt = 0
        while True:
            async with self._transport.stream(call) as body:
                if body.head.status in (200, 206):
                    yield body
                    return
                reply = replace(body.head, content=await _rest(body))
            pause = self._pause(reply, attempt)
            if pause is None:
                check(reply)
                raise unreadable(reply, "not a status that a file or a stream has")
            await self._transport.sleep(pause)
            attempt += 1

    def _pause(self, reply: Reply, attempt: int) -> float | None:
        if reply.status < 400:
            return None
        return self.policy.after_answer(attempt, reply.status, problem(reply).code, reply.headers)

    def _outgoing(self, request: Request) -> Outgoing:
        request_id = uuid.uuid4().hex
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Accept": "application/json",
            "User-Agent": _AGENT,
            "X-Request-Id": request_id,
        }
        content: bytes | None = None
        if request.body is not None:
            content = msgspec.json.encode(request.body)
            headers["Content-Type"] = "application/json"
        if request.method == "POST":
            # The same for every attempt: the service answers a repetition with the first one's answer.
            headers["Idempotency-Key"] = uuid.uuid4().hex
        headers |= request.headers
        url = urljoin(self._base, request.path.lstrip("/"))
        if request.params:
            url = f"{url}?{urlencode(request.params)}"
        return Outgoing(request.method, url, headers, content, request.read_timeout, request_id)

    def _signed(self, url: str) -> str:
        """A signed URL; raises `APIError` unless it is plain http(s)."""
        absolute = urljoin(self._base, url)
        if urlsplit(absolute).scheme not in ("http", "https"):
            raise errors.APIError(
                f"the service gave an address that is not http(s): {visible(absolute, 100)}"
            )
        return absolute


async def _rest(body: Body) -> bytes:
    """What is left of a short answer, an error's say."""
    content = b""
    while len(content) < _MAX_ERROR_BYTES and (chunk := await body.read()):
        content += chunk
    return content
