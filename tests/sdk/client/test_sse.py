"""The parser of server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomscope import APIError
from atomscope.client._sse import ServerSentEvent, SSEParser

STREAM = (
    '\ufeff: hello\n\nid: 1\nevent: audit.queued\ndata: {"a":\r\ndata:  1}\r\n\r\n'
    "retry: 2500\nid\ndata: line\u2028separator\n\n"
    "event: lost\n\nid: 9\rdata: last\r\r:end\n"
).encode()
EVENTS = [
    ServerSentEvent(data='{"a":\n 1}', event="audit.queued", id="1"),
    ServerSentEvent(data="line\u2028separator", event="message", id=""),
    ServerSentEvent(data="last", event="message", id="9"),
]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_where_the_chunks_are_cut(cuts: list[int]) -> None:
    parser = SSEParser()
    edges = sorted({0, len(STREAM), *cuts})
    events = [event for a, b in pairwise(edges) for event in parser.feed(STREAM[a:b])]
    assert events == EVENTS
    assert parser.retry == 2.5


def test_an_event_that_is_not_ended_is_not_given() -> None:
    assert SSEParser().feed(b"data: half\n") == []


def test_a_line_without_end_is_refused() -> None:
    parser = SSEParser()
    for _ in range(4):
        parser.feed(b"x" * (1 << 20))
    with pytest.raises(APIError, match="longer than"):
        parser.feed(b"x")
