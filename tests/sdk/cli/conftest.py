"""The command line against a scripted server, and a small bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk.cli.running import Run, in_process
from tests.sdk.cli.small_bundle import make_bundle
from tests.sdk.client.server import ScriptedServer, serving


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATOMSCOPE_BASE_URL", "ATOMSCOPE_API_KEY", "ATOMSCOPE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server that the environment names."""
    with serving() as running:
        monkeypatch.setenv("ATOMSCOPE_BASE_URL", running.url)
        monkeypatch.setenv("ATOMSCOPE_API_KEY", "ask_of_the_environment")
        yield running


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))
