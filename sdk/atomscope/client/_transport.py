"""Single attempts at HTTP: one protocol, a blocking and an asynchronous implementation.

The clients' logic is written once, as coroutines over a `Transport`. `BlockingTransport` never awaits
anything that suspends, so `run` can finish such a coroutine in one step, without an event loop.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import httpx

from atomscope import errors
from atomscope.client._wire import FileSlice, Outgoing, Reply, with_request_id

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0


class Body(Protocol):
    """An answer whose body is still to be read."""

    @property
    def head(self) -> Reply:
        """Its status and headers; the content is empty."""
        ...

    async def read(self) -> bytes:
        """The next bytes, empty at the end; raises `APIConnectionError`."""
        ...


class Transport(Protocol):
    """One attempt at a time, whatever the answer's status. Raises `APIConnectionError` without an answer."""

    async def send(self, call: Outgoing) -> Reply: ...

    def stream(self, call: Outgoing) -> AbstractAsyncContextManager[Body]: ...

    async def sleep(self, seconds: float) -> None: ...

    async def work(self, function: Callable[[], T]) -> T:
        """Call a blocking function (hashing, writing): in a thread where an event loop would wait."""
        ...

    async def close(self) -> None: ...


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client suspended")


class BlockingTransport:
    """Over `httpx.Client`. Its coroutines never suspend."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._http = httpx.Client(timeout=timeout, follow_redirects=False, verify=_certificates())

    async def send(self, call: Outgoing) -> Reply:
        with _told(call):
            return _reply(self._http.send(self._build(call)), call)

    @asynccontextmanager
    async def stream(self, call: Outgoing) -> AsyncGenerator[Body]:
        with _told(call):
            response = self._http.send(self._build(call), stream=True)
        try:
            yield _BlockingBody(call, _head(response, call), response.iter_bytes())
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def work(self, function: Callable[[], T]) -> T:
        return function()

    async def close(self) -> None:
        self._http.close()

    def _build(self, call: Outgoing) -> httpx.Request:
        content = _blocks(call.content) if isinstance(call.content, FileSlice) else call.content
        return self._http.build_request(
            call.method,
            call.url,
            content=content,
            headers=dict(call.headers),
            timeout=_timeout(call, self._timeout),
        )


class AsyncTransport:
    """Over `httpx.AsyncClient`, under asyncio."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._http = httpx.AsyncClient(timeout=timeout, follow_redirects=False, verify=_certificates())

    async def send(self, call: Outgoing) -> Reply:
        with _told(call):
            return _reply(await self._http.send(self._build(call)), call)

    @asynccontextmanager
    async def stream(self, call: Outgoing) -> AsyncGenerator[Body]:
        with _told(call):
            response = await self._http.send(self._build(call), stream=True)
        try:
            yield _AsyncBody(call, _head(response, call), response.aiter_bytes())
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    async def close(self) -> None:
        await self._http.aclose()

    def _build(self, call: Outgoing) -> httpx.Request:
        content = _async_blocks(call.content) if isinstance(call.content, FileSlice) else call.content
        return self._http.build_request(
            call.method,
            call.url,
            content=content,
            headers=dict(call.headers),
            timeout=_timeout(call, self._timeout),
        )


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted authorities: read once, since that takes longer than a request on this machine."""
    return httpx.create_ssl_context()


@dataclass
class _BlockingBody:
    call: Outgoing
    head: Reply
    chunks: Iterator[bytes]

    async def read(self) -> bytes:
        with _told(self.call):
            return next(self.chunks, b"")


@dataclass
class _AsyncBody:
    call: Outgoing
    head: Reply
    chunks: AsyncIterator[bytes]

    async def read(self) -> bytes:
        with _told(self.call):
            return await anext(self.chunks, b"")


@contextmanager
def _told(call: Outgoing) -> Generator[None]:
    """Turn httpx's exceptions into ours, which name the host and the request."""
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
        timed_out = isinstance(error, httpx.TimeoutException)
        kind = errors.APITimeoutError if timed_out else errors.APIConnectionError
        host = (
            httpx.URL(call.url).netloc.decode() if not isinstance(error, httpx.InvalidURL) else "the service"
        )
        what = (
            "did not answer in time" if timed_out else f"cannot be reached ({error or type(error).__name__})"
        )
        raise with_request_id(kind, f"{host} {what}", call.request_id) from error


def _timeout(call: Outgoing, default: float) -> httpx.Timeout:
    read = call.read_timeout if call.read_timeout is not None else default
    return httpx.Timeout(default, connect=min(default, _CONNECT_TIMEOUT), read=read)


def _reply(response: httpx.Response, call: Outgoing) -> Reply:
    request_id = response.headers.get("x-request-id") or call.request_id
    return Reply(response.status_code, response.headers, response.content, request_id)


def _head(response: httpx.Response, call: Outgoing) -> Reply:
    request_id = response.headers.get("x-request-id") or call.request_id
    return Reply(response.status_code, response.headers, b"", request_id)


def _blocks(part: FileSlice) -> Iterator[bytes]:
    with part.open() as source:
        left = part.size
        while left:
            block = part.block(source, left)
            left -= len(block)
            yield block


async def _async_blocks(part: FileSlice) -> AsyncIterator[bytes]:
    source = await asyncio.to_thread(part.open)
    try:
        left = part.size
        while left:
            block = await asyncio.to_thread(part.block, source, left)
            left -= len(block)
            yield block
    finally:
        source.close()
