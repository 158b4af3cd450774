"""The command line against a scripted server, and a small bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from atomscope.cli import plugins
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


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """`local(runner)` makes it the pipeline; without one there is none."""
    points: list[EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)

    def entry_points(group: str) -> list[EntryPoint]:
        return points

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    module = f"runner_of_test_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(
        "from atomscope.cli import plugins\n"
        "def register(registry):\n    registry.add_local_runner(lambda: plugins.RUNNER_OF_TEST)"
    )

    def use(runner: Any) -> Any:
        monkeypatch.setattr(plugins, "RUNNER_OF_TEST", runner, raising=False)
        points.append(EntryPoint(name="workers", value=f"{module}:register", group=plugins.GROUP))
        return runner

    yield use
    sys.modules.pop(module, None)
