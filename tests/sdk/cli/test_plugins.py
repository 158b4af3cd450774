"""What extras add, and what happens when one is missing or broken."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from atomscope.cli import plugins
from atomscope.cli.registry import Estimate, LocalRun
from atomscope.errors import InvalidInput, NothingToAudit
from atomscope.types.resources import Progress
from tests.sdk.cli.running import Run, in_another
from tests.sdk.client.samples import MODEL

EXTRA_LINE = "pip install 'atomscope[{}]'"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`plugin(name, source)` makes the only entry points be those of modules with these sources."""
    points: list[EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)

    def add(name: str, source: str) -> None:
        module = f"plugin_of_test_{len(points)}_{abs(hash(str(tmp_path)))}"
        (tmp_path / f"{module}.py").write_text(source)
        points.append(EntryPoint(name=name, value=f"{module}:register", group=plugins.GROUP))

    yield add
    for name in [name for name in sys.modules if name.startswith("plugin_of_test_")]:
        del sys.modules[name]


HELLO = """
def register(registry):
    def run(args, output):
        output.result({"hello": args.name}, f"hello {args.name}")
        return 3
    registry.add_command("greet warmly", "say hello", lambda parser: parser.add_argument("name"), run)
"""


def test_a_plugin_adds_a_command_in_a_group_of_its_own(run: Run, plugin: Any) -> None:
    plugin("hello", HELLO)
    done = run("greet", "warmly", "you\x1b[1m")
    assert (done.status, done.out) == (3, "hello you\\x1b[1m\n")
    assert run("greet", "warmly", "you", "--json").json() == {"hello": "you"}


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('on import')",
        "def register(registry): raise RuntimeError('on registering')",
        "def other(registry): pass",
        "import atomscope.no_such_module",
        "import no_such_distribution",
        "def register(registry): registry.add_command('audit', 'takes a group', print, print)",
        "def register(registry): registry.add_command('audit run', 'takes a command', print, print)",
        "def register(registry): registry.add_command('--evil', 'looks like an option', print, print)",
        "def register(registry):\n"
        "    registry.add_command('x', 'own json', lambda p: p.add_argument('--json'), print)",
        "syntax error",
    ],
)
def test_a_broken_plugin_is_reported_and_costs_only_itself(run: Run, plugin: Any, source: str) -> None:
    plugin("broken", source)
    plugin("hello", HELLO)
    done = run("--help")
    assert done.status == 0
    assert "broken" in done.err
    assert "greet" in done.out
    assert "audit" in done.out
    assert run("greet", "warmly", "you").status == 3


@pytest.mark.parametrize(
    ("line", "extra"), [("up --port 1", "service"), ("models register --name x", "service")]
)
def test_a_command_of_a_missing_extra_prints_its_pip_line(
    run: Run, plugin: Any, line: str, extra: str
) -> None:
    plugin("service", "import a_module_of_the_extra")
    done = run(*line.split())
    assert done.status == 4
    assert EXTRA_LINE.format(extra) in done.err.splitlines()
    assert done.err.count("\n") == 2


def test_a_module_that_is_missing_when_the_command_runs_is_told_the_same_way(run: Run, plugin: Any) -> None:
    plugin(
        "workers",
        "def register(registry):\n"
        "    def run(args, output):\n        import a_module_of_the_extra\n"
        "    registry.add_command('worker', 'work', lambda parser: None, run)",
    )
    done = run("worker")
    assert done.status == 4
    assert EXTRA_LINE.format("workers") in done.err.splitlines()


# ------------------------------------------------------------ audit run --local


class Runner:
    """Stands for the pipeline, which has tests of its own."""

    def __init__(self, bundle: Path | None = None, error: Exception | None = None) -> None:
        self.bundle, self.error = bundle, error
        self.asked: list[LocalRun] = []

    def run(self, request: LocalRun, on_progress: Any) -> Path:
        self.asked.append(request)
        on_progress("extract", Progress(done=1, total=2, unit="documents"))
        if self.error is not None:
            raise self.error
        assert self.bundle is not None
        return self.bundle

    def estimate(self, request: LocalRun) -> Estimate:
        self.asked.append(request)
        return Estimate(
            documents=1815, tokens=9, shards=8, seconds=200.0, memory_bytes=3 << 30, bundle_bytes=1536,
            details={"device": "cpu\x1b"},
        )  # fmt: skip


@pytest.fixture
def local(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`local(runner)` registers it and gives the arguments of a run."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "rows.jsonl").touch()

    def use(runner: Runner) -> list[str]:
        monkeypatch.setattr(plugins, "RUNNER_OF_TEST", runner, raising=False)
        plugin(
            "workers",
            "from atomscope.cli import plugins\n"
            "def register(registry):\n    registry.add_local_runner(lambda: plugins.RUNNER_OF_TEST)",
        )
        inputs = ["--base-model", "base", "--adapter", "adapter", "--dataset", "rows.jsonl"]
        return ["audit", "run", "--local", *inputs]

    monkeypatch.chdir(tmp_path)
    return use


def test_a_local_audit_prints_its_atoms_and_where_the_bundle_is(
    run: Run, local: Any, bundle: Path, tmp_path: Path
) -> None:
    runner = Runner(bundle)
    arguments = local(runner)
    (tmp_path / "c.toml").write_text("alpha = 0.3")
    done = run(*arguments, "--out", "b", "--config", "c.toml")
    assert done.status == 0
    tables = [block.split()[:2] for block in done.out.split("\n\n")]
    assert tables == [["rank", "behaviour"], ["rank", "atom"]]
    assert str(bundle) in done.err
    assert "\x1b" not in done.out + done.err
    asked = runner.asked[0]
    assert (asked.base_model, asked.dataset, asked.out) == (Path("base"), Path("rows.jsonl"), Path("b"))
    assert asked.config.alpha == 0.3
    told = run(*arguments, "--out", "b", "--json").json()
    assert told["bundle"] == str(bundle)
    assert [each["index"] for each in told["atoms"]] == [5, 0, 2]
    assert [each["index"] for each in told["behaviours"]] == [3]


def test_a_dry_run_needs_no_place_and_tells_time_memory_and_bytes(run: Run, local: Any) -> None:
    arguments = local(Runner())
    done = run(*arguments, "--dry-run")
    assert done.status == 0
    for told in ("1815", "3 min 20 s", "3.0 GiB", "1.5 KiB", "cpu\\x1b"):
        assert told in done.out
    assert run(*arguments, "--dry-run", "--json").json()["seconds"] == 200.0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("bad_row", "row 1"), 2),
        (NothingToAudit("empty_dataset", "no row"), 3),
        (OSError("full"), 1),
    ],
)
def test_a_local_audit_exits_as_the_service_would(
    run: Run, local: Any, error: Exception, status: int
) -> None:
    done = run(*local(Runner(error=error)), "--out", "b")
    assert (done.status, done.out) == (status, "")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--out"),
        (["--out", "b", "--name", "x"], "--name"),
        (["--out", "b", "--no-wait"], "--no-wait"),
        (["--out", "b", "--timeout", "0"], "--timeout"),
        (["--out", "b", "--base-url", "http://x"], "--base-url"),
        (["--out", "b", "--metadata", "a=b"], "--metadata"),
        (["--out", "b", "--base-model", MODEL], "not a folder"),
        (["--out", "b", "--dataset", "base"], "not a file"),
        (["--out", "b", "--dataset", "a\0b"], "not a path"),
    ],
)
def test_what_has_no_meaning_here_is_refused(run: Run, local: Any, flags: list[str], told: str) -> None:
    runner = Runner()
    done = run(*local(runner), *flags)
    assert done.status == 4
    assert told in done.err
    assert runner.asked == []


@pytest.mark.parametrize("how", ["not registered", "not loadable", "not runnable"])
def test_without_the_workers_extra_the_pip_line_is_printed(
    run: Run, local: Any, plugin: Any, how: str
) -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    arguments = local(Runner(error=missing if how == "not runnable" else None))
    if how == "not registered":
        plugins.entry_points("").clear()  # type: ignore[attr-defined]
    elif how == "not loadable":
        plugins.entry_points("").clear()  # type: ignore[attr-defined]
        plugin(
            "workers",
            "def load():\n    import a_module_of_the_extra\n"
            "def register(registry):\n    registry.add_local_runner(load)",
        )
    done = run(*arguments, "--out", "b")
    assert (done.status, done.out) == (4, "")
    assert done.err.splitlines()[-1] == "pip install 'atomscope[workers]'"


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra(run: Run, local: Any) -> None:
    ours = ModuleNotFoundError("No module named 'atomscope.nope'", name="atomscope.nope")
    with pytest.raises(ModuleNotFoundError):
        run(*local(Runner(error=ours)), "--out", "b")


def test_the_installed_commands_load_without_complaint() -> None:
    done = in_another("--help")
    assert (done.status, done.err) == (0, "")
