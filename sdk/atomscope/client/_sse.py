"""Server-sent events: bytes in, events out, whatever the boundaries of the chunks."""

from __future__ import annotations

import msgspec

from atomscope.errors import APIError

_MAX_LINE_BYTES = 4 * 1024 * 1024


class ServerSentEvent(msgspec.Struct, kw_only=True, frozen=True):
    data: str
    event: str = "message"
    id: str = ""
    """The last id seen on the stream, as the standard has it."""


class SSEParser:
    """Parses one stream (WHATWG HTML, section 9.2.6). Not for reuse on another connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self._first = True
        self.retry: float | None = None
        """Seconds that the server asks to wait before a reconnection, where it said so."""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Events that `chunk` completes; raises `APIError` on a line that does not end."""
        self._buffer += chunk
        events: list[ServerSentEvent] = []
        while (line := self._take_line()) is not None:
            event = self._line(line)
            if event is not None:
                events.append(event)
        if len(self._buffer) > _MAX_LINE_BYTES:
            raise APIError(f"a line of the event stream is longer than {_MAX_LINE_BYTES} bytes")
        return events

    def _take_line(self) -> str | None:
        """The next whole line. A lone CR also ends one, so a CR at the end of the buffer waits: an LF
        may follow in the next chunk."""
        buffer = self._buffer
        line_feed, carriage = buffer.find(b"\n"), buffer.find(b"\r")
        if carriage != -1 and (line_feed == -1 or carriage < line_feed):
            if carriage == len(buffer) - 1:
                return None
            end, after = carriage, carriage + (2 if buffer[carriage + 1] == 0x0A else 1)
        elif line_feed != -1:
            end, after = line_feed, line_feed + 1
        else:
            return None
        line = bytes(buffer[:end]).decode(errors="replace")
        del buffer[:after]
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        return line

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value) / 1000
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if not data:
            return None
        return ServerSentEvent(data="\n".join(data), event=event or "message", id=self._id)
