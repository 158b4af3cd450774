"""Labels by `audit run --local`, from a real endpoint over HTTP, which may fail midway."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope.bundle import layout
from atomscope.cli import main
from tests.fixtures.corpus import write_corpus
from tests.workers.labels.server import ModelServer, Reply, model_server, said

CONFIG = {
    "dtype": "float32", "n_atoms": 5, "alpha": 0.2, "min_active": 2, "top_documents": 4, "behaviours": 3,
    "fits": 1, "surrogates": 0, "labels": True,
}  # fmt: skip
DOCUMENTS = 16
KEY = "sk-test-key"
GIVEN = 3
"""Labels that an endpoint gives before it fails."""


@dataclass(frozen=True)
class Ran:
    """What the command left and printed."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def bundle(self) -> atomscope.Bundle:
        return atomscope.open(self.folder)

    @property
    def labels(self) -> list[str | None]:
        """In the order of asking: behaviours by rank, then atoms by rank."""
        return [item.label for item in [*self.bundle.behaviours, *self.bundle.atoms]]

    def requests(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / layout.LABELS).read_bytes())["requests"]


Run = Callable[[ModelServer | None], Ran]


@pytest.fixture
def run(
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command with an endpoint named in its environment, or with none."""
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # so that what the command sets is taken back
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    dataset = write_corpus(tmp_path / "train.jsonl", DOCUMENTS)
    inputs = ["--base-model", str(tiny_llama), "--adapter", str(plain_adapter), "--dataset", str(dataset)]
    out = tmp_path / "bundle"
    command = ["audit", "run", "--local", *inputs, "--config", str(tmp_path / "config.json"), "--json"]

    def audit(server: ModelServer | None) -> Ran:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        given = {"URL": server.url, "MODEL": "small", "KEY": KEY} if server else {}
        for name in ("URL", "MODEL", "KEY"):
            monkeypatch.delenv(f"ATOMSCOPE_LABEL_{name}", raising=False)
        for name, value in given.items():
            monkeypatch.setenv(f"ATOMSCOPE_LABEL_{name}", value)
        status = main([*command, "--out", str(out)])
        told = capsys.readouterr()
        return Ran(status, told.out, told.err, out)

    return audit


def test_every_behaviour_and_atom_is_named_in_bundle_and_output(run: Run) -> None:
    with model_server(lambda number, received: said(f"name {number}")) as server:
        done = run(server)
    assert done.status == 0, done.err
    done.bundle.verify()
    assert done.labels == [f"name {number}" for number in range(len(done.labels))] != []
    assert [item["label"] for item in json.loads(done.out)["atoms"]] == [
        item.label for item in done.bundle.atoms
    ]
    assert [item["messages"] for item in done.requests()] == [
        item.body["messages"] for item in server.received
    ]
    assert {item.headers["authorization"] for item in server.received} == {f"Bearer {KEY}"}
    assert not [
        path for path in done.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ]
    assert not [item for item in done.bundle.report.warnings if "label" in item]


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [(Reply(403), "HTTP 403", 1), (Reply(503, headers={"Retry-After": "0"}), "HTTP 503", 3)],
    ids=["refusing", "overloaded"],
)
def test_an_endpoint_that_fails_midway_costs_the_labels_that_were_left(
    run: Run, reply: Reply, reason: str, attempts: int
) -> None:
    """The audit ends well, the labels given so far are kept, and the report says what is missing and why."""
    with model_server(lambda number, received: said(f"name {number}") if number < GIVEN else reply) as server:
        done = run(server)
    assert done.status == 0, done.err
    done.bundle.verify()
    left = len(done.labels) - GIVEN
    assert left > 3, "there must be some that nobody asks about any more"
    assert done.labels == [f"name {number}" for number in range(GIVEN)] + [None] * left
    told = [
        f"3 of {GIVEN + 3} labels could not be had: {reason} (3)",
        f"{left - 3} atoms and behaviours were not asked a label for: 3 requests in a row had failed",
    ]
    assert [item for item in done.bundle.report.warnings if "label" in item] == told
    assert [item for item in json.loads(done.out)["warnings"] if "label" in item] == told
    assert [item["failure"] for item in done.requests()] == [None] * GIVEN + [reason] * 3
    assert len(server.received) == GIVEN + 3 * attempts


def test_labels_without_an_endpoint_are_refused_before_any_work(run: Run) -> None:
    done = run(None)
    assert done.status == 2
    assert "ATOMSCOPE_LABEL_URL" in done.out + done.err
    assert not done.folder.exists()
