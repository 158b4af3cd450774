"""`atomscope audit run --local` as a process of its own: exit status, output, terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope.cli import main
from tests.fixtures.corpus import rows, write_corpus
from tests.fixtures.stack import ATOMSCOPE, environment

CONFIG = {
    "dtype": "float32", "shard_documents": 8, "token_budget": 128, "components": 4,
    "n_atoms": 4, "alpha": 0.3, "min_active": 2, "top_documents": 4, "fits": 2, "surrogates": 1,
}  # fmt: skip
DOCUMENTS = 96
"""Enough shards that a signal sent after the first of them comes before the end."""


@dataclass(frozen=True)
class Site:
    """The inputs of the audits, in one folder."""

    folder: Path
    base: Path
    adapter: Path

    def command(self, dataset: Path, out: Path, *more: str) -> list[str]:
        inputs = ["--base-model", str(self.base), "--adapter", str(self.adapter), "--dataset", str(dataset)]
        settings = ["--config", str(self.folder / "config.json"), "--out", str(out)]
        return [str(ATOMSCOPE), "audit", "run", "--local", *inputs, *settings, *more]


@pytest.fixture(scope="module")
def site(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("local-cli")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Site(folder, tiny_llama, plain_adapter)


def _environment() -> dict[str, str]:
    return environment({"COLUMNS": "120", "TERM": "xterm"})


Run = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit status and output of a command, in this process: one of its own would load torch for nothing."""
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # so that what the command sets is taken back

    def ran(command: list[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(command[1:])
        return status, *capsys.readouterr()

    return ran


def _markers(out: Path) -> list[str]:
    return sorted(path.stem for path in out.with_name(f"{out.name}.partial").glob("units/*.json"))


@dataclass(frozen=True)
class Interrupted:
    """A run that was interrupted, and what it left."""

    status: int
    out: str
    err: str
    markers: list[str]
    bundle: Path


@pytest.fixture(scope="module")
def interrupted(site: Site) -> Interrupted:
    """SIGINT as soon as the first shard is done."""
    out = site.folder / "bundle"
    dataset = write_corpus(site.folder / "train.jsonl", DOCUMENTS)
    process = subprocess.Popen(
        site.command(dataset, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    while process.poll() is None and "extract-0000" not in _markers(out):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGINT)
    told, error = process.communicate()
    return Interrupted(process.returncode, told, error, _markers(out), out)


@dataclass(frozen=True)
class Shown:
    """A run whose standard error was a terminal."""

    status: int
    out: str
    drawn: str


@pytest.fixture(scope="module")
def resumed(site: Site, interrupted: Interrupted) -> Shown:
    """The same command again, on a terminal."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        site.command(site.folder / "train.jsonl", interrupted.bundle),
        stdout=subprocess.PIPE,
        stderr=other_end,
        text=True,
        env=_environment(),
    )
    os.close(other_end)
    drawn = b"".join(_read_all(terminal)).decode()
    os.close(terminal)
    out, _ = process.communicate()
    return Shown(process.returncode, out, drawn)


def _read_all(descriptor: int) -> Iterator[bytes]:
    with suppress(OSError):  # EIO: the other end was closed
        while block := os.read(descriptor, 65536):
            yield block


def test_ctrl_c_leaves_work_that_can_be_resumed_and_says_so(interrupted: Interrupted) -> None:
    assert interrupted.status == 130
    assert interrupted.out == ""
    assert interrupted.err == "atomscope: stopped; the same command goes on where this one was\n"
    assert {"validate-0000", "extract-0000"} <= set(interrupted.markers)
    assert "report-0000" not in interrupted.markers


def test_the_same_command_goes_on_to_a_whole_bundle(interrupted: Interrupted, resumed: Shown) -> None:
    assert resumed.status == 0, resumed.drawn
    assert f"bundle: {interrupted.bundle}" in resumed.drawn
    assert "validate" not in resumed.drawn  # it was done
    bundle = atomscope.open(interrupted.bundle)
    bundle.verify()
    assert len(bundle.documents) == DOCUMENTS
    assert _markers(interrupted.bundle) == []


def test_behaviours_and_atoms_go_to_standard_output_and_a_bar_of_each_stage_to_the_terminal(
    interrupted: Interrupted, resumed: Shown
) -> None:
    bundle = atomscope.open(interrupted.bundle)
    tables = resumed.out.split("\n\n")
    for table, kind, found in zip(
        tables, ("behaviour", "atom"), (bundle.behaviours, bundle.atoms), strict=True
    ):
        lines = table.splitlines()
        assert lines[0].split()[:3] == ["rank", kind, "score"]
        assert [int(line.split()[1]) for line in lines[1:]] == [item.index for item in found] != []
    assert "\x1b" not in resumed.out
    for stage in ("extract", "project", "report"):
        assert stage in resumed.drawn
    assert f"{DOCUMENTS}/{DOCUMENTS} documents" in re.sub(r"\x1b\[[0-9;]*m", "", resumed.drawn)
    assert "Loading" not in resumed.drawn  # bars of the libraries
    assert "Traceback" not in resumed.drawn


def test_json_is_one_document_with_nothing_beside_it(
    site: Site, interrupted: Interrupted, resumed: Shown, run: Run
) -> None:
    status, out, err = run(site.command(site.folder / "train.jsonl", interrupted.bundle, "--json"))
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    assert found.keys() == {"bundle", "behaviours", "atoms", "warnings"}
    assert found["bundle"] == str(interrupted.bundle)
    bundle = atomscope.open(interrupted.bundle)
    assert [atom["index"] for atom in found["atoms"]] == [atom.index for atom in bundle.atoms]


def test_a_bad_row_exits_with_2_and_is_told_by_file_line_and_field(
    site: Site, run: Run, tmp_path: Path
) -> None:
    dataset = tmp_path / "bad.jsonl"
    bad = {"messages": [{"role": "robot", "content": "hello"}]}
    dataset.write_text("".join(json.dumps(row) + "\n" for row in [*rows(3), bad, *rows(2)]))
    status, out, err = run(site.command(dataset, tmp_path / "out"))
    assert (status, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("atomscope: bad.jsonl: 1 problem, first line 4")
    assert second.strip().startswith("file bad.jsonl, line 4, field messages[0].role: one of system,")
    assert not (tmp_path / "out").exists()


def test_nothing_to_audit_exits_with_3_and_says_why_in_json(site: Site, run: Run, tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "one.jsonl", 1)
    status, out, err = run(site.command(dataset, tmp_path / "out", "--json"))
    assert (status, err) == (3, "")
    error = json.loads(out)["error"]
    assert error["code"] == "too_few_documents"
    assert "one.jsonl leaves 1 document to audit; at least 2 are needed" in error["detail"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--no-wait"], "--no-wait has no meaning with --local"),
        (["--base-model", "no/such/folder"], "--base-model: 'no/such/folder' is not a folder"),
        (["--config", "no/such/file"], "cannot be read"),
        (["--colour"], "--colour"),
    ],
    ids=["a remote option", "a missing model", "missing settings", "an unknown option"],
)
def test_usage_errors_exit_with_4_before_anything_is_made(
    site: Site, run: Run, tmp_path: Path, change: list[str], told: str
) -> None:
    command = site.command(write_corpus(tmp_path / "train.jsonl", 4), tmp_path / "out")
    if change[0] in command:
        place = command.index(change[0])
        command[place : place + 2] = change
    else:
        command += change
    status, out, err = run(command)
    assert (status, out) == (4, "")
    assert told in err
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_without_out_it_says_what_is_missing(site: Site, run: Run) -> None:
    command = site.command(site.folder / "config.json", site.folder / "x")
    place = command.index("--out")
    status, _, err = run(command[:place])
    assert status == 4
    assert "--local needs --out BUNDLE" in err
