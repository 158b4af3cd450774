"""A small OpenAI-compatible server, since no language model's endpoint can run in tests.

It is a real HTTP server over a socket: what is sent to it is what would be sent to any other. What it answers
is chosen by the test; it understands nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    drip: float = 0.0
    """Seconds between one byte and the next."""


def said(text: str | None, model: str = "small-2026") -> Reply:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply(body=json.dumps({"object": "chat.completion", "model": model, "choices": [choice]}).encode())


@dataclass
class ModelServer:
    """The server's address, what it received, and how it answers: by the number of the request, from 0."""

    answer: Callable[[int, Received], Reply]
    received: list[Received] = field(default_factory=list[Received])
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def model_server(answer: Callable[[int, Received], Reply]) -> Generator[ModelServer]:
    """Serve on a free port of the loopback address until the block ends."""
    server = ModelServer(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("content-length", "0"))
            content = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.command, self.path, headers, json.loads(content) if content else {})
            with lock:
                number = len(server.received)
                server.received.append(received)
            reply = server.answer(number, received)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            for byte in [reply.body] if not reply.drip else [bytes([item]) for item in reply.body]:
                if reply.drip and server.closing.wait(reply.drip):
                    return
                try:
                    self.wfile.write(byte)
                    self.wfile.flush()
                except OSError:  # the client went away
                    return

        do_GET = do_POST = _handle  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()
