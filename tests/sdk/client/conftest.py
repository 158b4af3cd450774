"""A scripted server, and scenarios that run on the blocking and on the asynchronous client alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atomscope.client import _jobs
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import ScriptedServer, serving


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first pause so short that a job is waited for in no time."""
    monkeypatch.setattr(_jobs, "FIRST_PAUSE", 0.01)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as running:
        yield running


@pytest.fixture(params=["blocking", "asynchronous"])
def ask(request: pytest.FixtureRequest, server: ScriptedServer) -> Ask:
    return Ask(server.url, blocking=request.param == "blocking")
