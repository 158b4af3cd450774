"""The edge to the language model: chat completions over HTTP, bounded in time and size.

Requests run on an event loop of their own thread, so that one deadline holds for the whole answer however
slowly it drips, and so that an audit that is canceled does not wait for it. Redirects are not followed: text
goes to the address that the operator named and nowhere else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import httpx
import msgspec

from atomscope.client._retry import RetryPolicy
from atomscope_workers.labels.settings import LabelSettings

MAX_ANSWER_BYTES = 1 << 18
"""Longest body of an answer that is read."""

LOOK_SECONDS = 0.25
"""How often a waiting request asks whether it should go on."""

_SHOWN_MODEL = 200


class LabelFailed(Exception):  # noqa: N818
    """A request brought no answer. The reason holds neither text that was sent nor the key."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.attempts = attempts


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    model: str | None
    """The model that has answered, as the endpoint calls it."""
    attempts: int


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: httpx.Headers
    body: bytes


class _Unanswered(Exception):  # noqa: N818
    """No reply, or one that must not be read; another attempt may help where `again`."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None


class LabelEndpoint:
    """A context manager: open while labels are asked for."""

    def __init__(
        self,
        settings: LabelSettings,
        checkpoint: Callable[[], None] = lambda: None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """`checkpoint` is called while a request waits; what it raises ends the request."""
        self._settings = settings
        self._checkpoint = checkpoint
        self._policy = policy or RetryPolicy()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="labels", daemon=True)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Content-Type": "application/json"}
        if settings.key is not None:
            headers["Authorization"] = f"Bearer {settings.key}"
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.timeout, follow_redirects=False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, messages: list[dict[str, str]]) -> Answer:
        """The answer to one prompt.

        408, 429, 5xx and lost connections are tried again, `Retry-After` goes before our own pause. Raises
        `LabelFailed`, and what `checkpoint` raises.
        """
        fields = {**self._settings.options, "model": self._settings.model, "messages": messages}
        body, attempt = msgspec.json.encode(fields), 0
        while True:
            try:
                reply = self._send(body)
            except _Unanswered as error:
                if not error.again or attempt >= self._policy.max_retries:
                    raise LabelFailed(error.reason, attempt + 1) from error
                pause = self._policy.pause(attempt)
            else:
                if reply.status == HTTPStatus.OK:
                    return _read(reply.body, attempt + 1)
                after = self._policy.after_answer(attempt, reply.status, "", reply.headers)
                if after is None:
                    raise LabelFailed(_refusal(reply.status), attempt + 1)
                pause = after
            self._rest(pause)
            attempt += 1

    def _send(self, body: bytes) -> _Reply:
        """One attempt, from this thread; the checkpoint is called while it runs."""
        future = asyncio.run_coroutine_threadsafe(self._post(body), self._loop)
        try:
            while not wait([future], LOOK_SECONDS).done:
                self._checkpoint()
        except BaseException:
            future.cancel()
            raise
        return future.result()

    async def _post(self, body: bytes) -> _Reply:
        url, content = f"{self._settings.url}/chat/completions", bytearray()
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                self._client.stream("POST", url, content=body) as response,
            ):
                if response.headers.get("content-encoding", "identity") != "identity":
                    # A few compressed bytes could come out as gigabytes.
                    raise _Unanswered("a compressed answer, which was not asked for", again=False)
                async for block in response.aiter_raw():
                    content += block
                    if len(content) > MAX_ANSWER_BYTES:
                        raise _Unanswered(f"an answer of more than {MAX_ANSWER_BYTES} bytes", again=False)
                return _Reply(response.status_code, response.headers, bytes(content))
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Unanswered(f"no answer within {self._settings.timeout:g} s", again=True) from error
        except httpx.ConnectError as error:
            raise _Unanswered("no connection", again=True) from error
        except httpx.HTTPError as error:
            raise _Unanswered(f"the connection failed ({type(error).__name__})", again=True) from error

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt; the checkpoint is called meanwhile."""
        until = time.monotonic() + seconds
        self._checkpoint()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            self._checkpoint()


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"HTTP {status}, a redirect, which is not followed"
    return f"HTTP {status}"


def _read(body: bytes, attempts: int) -> Answer:
    """The text of a chat completion; raises `LabelFailed`."""
    try:
        found = msgspec.json.decode(body, type=_Completion)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LabelFailed("an answer that is no chat completion", attempts) from error
    if not found.choices or found.choices[0].message.content is None:
        raise LabelFailed("an answer without text", attempts)
    model = None if found.model is None else found.model[:_SHOWN_MODEL]
    return Answer(found.choices[0].message.content, model, attempts)
