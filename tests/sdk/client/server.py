"""A real HTTP server on loopback that answers as it is told, failures included, and remembers what it got."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Got:
    """A request that arrived whole."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """An answer. `cut` sends only that many bytes of the body and closes; `drop` sends nothing at all."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    drop: bool = False


@dataclass(frozen=True)
class Chunks:
    """An event stream: pieces with pauses before them; `clean` ends it properly, else the line is cut."""

    pieces: list[tuple[float, bytes]]
    clean: bool = True


Script = Answer | Chunks | Callable[[Got], Answer | Chunks]


class ScriptedServer:
    """Routes to scripts. The last script of a route stays."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self._routes: list[tuple[str, re.Pattern[str], list[Script]]] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def _any(self) -> None:
                owner._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815  (http.server's names)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away early is part of the tests."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def on(self, method: str, path: str, *scripts: Script) -> Self:
        """Answer `method` on paths that match the expression `path` with each of `scripts` in turn."""
        self._routes.insert(0, (method, re.compile(path), list(scripts)))
        return self

    def to(self, method: str, path: str) -> list[Got]:
        """What arrived at a route."""
        return [got for got in self.got if got.method == method and re.fullmatch(path, got.path)]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        got = Got(handler.command, parts.path, dict(parse_qsl(parts.query)), handler.headers, body)
        with self._lock:
            self.got.append(got)
            script = self._script(got)
        if not isinstance(script, (Answer, Chunks)):
            script = script(got)
        if isinstance(script, Chunks):
            _stream(handler, script)
        else:
            _answer(handler, script)

    def _script(self, got: Got) -> Script:
        for method, pattern, scripts in self._routes:
            if method == got.method and pattern.fullmatch(got.path):
                return scripts.pop(0) if len(scripts) > 1 else scripts[0]
        return Answer(404, problem(404, "not_found", f"no script for {got.method} {got.path}"))


def problem(status: int, code: str, detail: str = "as told", **more: Any) -> dict[str, Any]:
    """The body of an error, as the service writes it."""
    told = {"type": f"urn:{code}", "title": code, "status": status, "detail": detail, "code": code}
    return {**told, "request_id": "req_body", "errors": [], **more}


def page(data: list[Any], following: str | None = None) -> dict[str, Any]:
    return {"data": data, "has_more": following is not None, "next": following}


@contextmanager
def serving() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _answer(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    time.sleep(answer.delay)
    if answer.drop:
        _cut(handler)
        return
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    if answer.body is None:
        body = b""
    kind = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json"
    headers = {"Content-Type": kind, "X-Request-Id": "req_header", **answer.headers}
    handler.send_response(answer.status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body if answer.cut is None else body[: answer.cut])
    handler.wfile.flush()
    if answer.cut is not None:
        _cut(handler)


def _stream(handler: BaseHTTPRequestHandler, chunks: Chunks) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("X-Request-Id", "req_stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for pause, piece in chunks.pieces:
        time.sleep(pause)
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.flush()
    if chunks.clean:
        handler.wfile.write(b"0\r\n\r\n")
        handler.wfile.flush()
    else:
        _cut(handler)


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
