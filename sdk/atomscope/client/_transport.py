"""Sending requests: one protocol, a blocking and an asynchronous implementation.

The clients' logic is written once, as coroutines over a `Transport`. `BlockingTransport` never awaits
anything that suspends, so `run` can finish such a coroutine in one step, without an event loop.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

import httpx

from atomscope import errors
from atomscope.client import _retry
from atomscope.client._wire import Request, problem

T = TypeVar("T")

_BLOCK = 1 << 20
_TRANSFER_TIMEOUT = httpx.Timeout(60.0, read=300.0, write=300.0)


class Transport(Protocol):
    """How the clients reach the service. Every method raises the exceptions of `atomscope.errors`."""

    async def send(self, request: Request) -> httpx.Response:
        """Send, with retries; the answer's status is below 400."""
        ...

    def lines(self, request: Request, read_timeout: float) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Stream an answer's lines, with no retries."""
        ...

    async def put(self, url: str, content: bytes) -> httpx.Response:
        """`PUT` a part to a signed URL, without the key, with retries."""
        ...

    async def download(self, url: str, path: Path) -> None:
        """Write what a signed URL gives to `path`, without the key, with retries."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client suspended")


class _Base:
    """What both transports share: headers, addresses, and the verdict on an answer."""

    def __init__(self, base_url: str, api_key: str) -> None:
        parts = httpx.URL(base_url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(f"base_url must be an http(s) address, not {base_url!r}")
        self._base = base_url.rstrip("/") + "/"
        self._key = api_key

    def _url(self, path: str) -> str:
        return urljoin(self._base, path.lstrip("/"))

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self._key}", "Accept": "application/json"}
        if request.method == "POST":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        return headers | dict(request.headers)

    def _signed(self, url: str) -> str:
        return urljoin(self._base, url)


def _verdict(response: httpx.Response, attempt: int) -> float | None:
    """None when the answer stands; else seconds until the next try. Raises when it is an error to keep."""
    if response.status_code < 300 or response.status_code == 304:
        return None
    if response.status_code < 400:
        raise errors.APIError(
            f"the service redirects to {response.headers.get('location')!r}: check base_url"
        )
    fault = problem(response)
    if attempt < _retry.MAX_RETRIES and _retry.retryable(fault.status, fault.code):
        return _retry.delay(attempt, response.headers)
    raise fault


def _lost(error: httpx.TransportError, url: httpx.URL | str, attempt: int) -> float:
    """Seconds until the next try; raises when there is none left."""
    if attempt < _retry.MAX_RETRIES and not isinstance(error, httpx.UnsupportedProtocol):
        return _retry.delay(attempt, {})
    kind = errors.APITimeoutError if isinstance(error, httpx.TimeoutException) else errors.APIConnectionError
    raise kind(f"cannot reach {httpx.URL(url).host}: {error or type(error).__name__}") from error


class BlockingTransport(_Base):
    """Over `httpx.Client`. Its coroutines never suspend."""

    def __init__(self, base_url: str, api_key: str, timeout: float) -> None:
        super().__init__(base_url, api_key)
        self._http = httpx.Client(timeout=timeout, follow_redirects=False)

    async def send(self, request: Request) -> httpx.Response:
        built = self._http.build_request(
            request.method,
            self._url(request.path),
            params=dict(request.params) or None,
            content=request.content(),
            headers=self._headers(request),
        )
        return self._send(built)

    def _send(self, built: httpx.Request) -> httpx.Response:
        for attempt in range(_retry.MAX_RETRIES + 1):
            try:
                response = self._http.send(built)
            except httpx.TransportError as error:
                wait: float | None = _lost(error, built.url, attempt)
            else:
                wait = _verdict(response, attempt)
                if wait is None:
                    return response
            time.sleep(wait)
        raise errors.APIConnectionError("no attempts left")

    @asynccontextmanager
    async def lines(self, request: Request, read_timeout: float) -> AsyncGenerator[AsyncIterator[str]]:
        try:
            with self._http.stream(
                request.method,
                self._url(request.path),
                params=dict(request.params) or None,
                headers=self._headers(request),
                timeout=httpx.Timeout(30.0, read=read_timeout),
            ) as response:
                if response.status_code >= 300:
                    response.read()
                    _verdict(response, _retry.MAX_RETRIES)
                blocking = response.iter_lines()

                async def iterate() -> AsyncIterator[str]:
                    for line in blocking:
                        yield line

                yield iterate()
        except httpx.TransportError as error:
            _lost(error, self._base, _retry.MAX_RETRIES)

    async def put(self, url: str, content: bytes) -> httpx.Response:
        return self._send(
            self._http.build_request("PUT", self._signed(url), content=content, timeout=_TRANSFER_TIMEOUT)
        )

    async def download(self, url: str, path: Path) -> None:
        for attempt in range(_retry.MAX_RETRIES + 1):
            try:
                with self._http.stream("GET", self._signed(url), timeout=_TRANSFER_TIMEOUT) as response:
                    if response.status_code >= 300:
                        response.read()
                        wait = _verdict(response, attempt)
                    else:
                        with path.open("wb") as sink:
                            for block in response.iter_bytes(_BLOCK):
                                sink.write(block)
                        return
            except httpx.TransportError as error:
                wait = _lost(error, url, attempt)
            time.sleep(wait or 0)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._http.close()


class AsyncTransport(_Base):
    """Over `httpx.AsyncClient`."""

    def __init__(self, base_url: str, api_key: str, timeout: float) -> None:
        super().__init__(base_url, api_key)
        self._http = httpx.AsyncClient(timeout=timeout, follow_redirects=False)

    async def send(self, request: Request) -> httpx.Response:
        built = self._http.build_request(
            request.method,
            self._url(request.path),
            params=dict(request.params) or None,
            content=request.content(),
            headers=self._headers(request),
        )
        return await self._send(built)

    async def _send(self, built: httpx.Request) -> httpx.Response:
        for attempt in range(_retry.MAX_RETRIES + 1):
            try:
                response = await self._http.send(built)
            except httpx.TransportError as error:
                wait: float | None = _lost(error, built.url, attempt)
            else:
                wait = _verdict(response, attempt)
                if wait is None:
                    return response
            await asyncio.sleep(wait)
        raise errors.APIConnectionError("no attempts left")

    @asynccontextmanager
    async def lines(self, request: Request, read_timeout: float) -> AsyncGenerator[AsyncIterator[str]]:
        try:
            async with self._http.stream(
                request.method,
                self._url(request.path),
                params=dict(request.params) or None,
                headers=self._headers(request),
                timeout=httpx.Timeout(30.0, read=read_timeout),
            ) as response:
                if response.status_code >= 300:
                    await response.aread()
                    _verdict(response, _retry.MAX_RETRIES)
                yield response.aiter_lines()
        except httpx.TransportError as error:
            _lost(error, self._base, _retry.MAX_RETRIES)

    async def put(self, url: str, content: bytes) -> httpx.Response:
        return await self._send(
            self._http.build_request("PUT", self._signed(url), content=content, timeout=_TRANSFER_TIMEOUT)
        )

    async def download(self, url: str, path: Path) -> None:
        for attempt in range(_retry.MAX_RETRIES + 1):
            try:
                async with self._http.stream("GET", self._signed(url), timeout=_TRANSFER_TIMEOUT) as response:
                    if response.status_code >= 300:
                        await response.aread()
                        wait = _verdict(response, attempt)
                    else:
                        with path.open("wb") as sink:
                            async for block in response.aiter_bytes(_BLOCK):
                                sink.write(block)
                        return
            except httpx.TransportError as error:
                wait = _lost(error, url, attempt)
            await asyncio.sleep(wait or 0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._http.aclose()
