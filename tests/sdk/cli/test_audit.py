"""`atomscope audit ...` on a service."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.types.presets import PRESETS
from tests.sdk.cli.running import COMMAND, Run, environment
from tests.sdk.client.samples import ADAPTER, AUDIT, DATASET, MODEL, an_id, atom, audit, behaviour, event, sse
from tests.sdk.client.server import Answer, Chunks, ScriptedServer, page

INPUTS = ["--base-model", MODEL, "--adapter", ADAPTER, "--dataset", DATASET]
ONE = f"/v1/audits/{AUDIT}"


def _audited(
    server: ScriptedServer, *last: dict[str, Any], status: str = "succeeded", **changes: Any
) -> None:
    stages = (
        event(2, "audit.stage", stage="extract"),
        event(3, "audit.progress", stage="extract", done=1, total=4),
    )
    told = Chunks([(0.0, sse(event(1, "audit.queued"), *stages, *last))])
    server.on("POST", "/v1/audits", Answer(202, audit()))
    server.on("GET", ONE, Answer(200, audit(status, **changes)))
    server.on("GET", f"{ONE}/events", told)
    server.on("GET", f"{ONE}/behaviours", Answer(200, page([behaviour(4, 1)])))
    server.on("GET", f"{ONE}/atoms", Answer(200, page([atom(7, 1), atom(3, 2)])))


def test_run_waits_and_prints_the_ranked_atoms(run: Run, server: ScriptedServer) -> None:
    _audited(server, event(4, "audit.succeeded"), warnings=["odd \x1b[1m"])
    done = run("audit", "run", *INPUTS, "--name", "mine", "--metadata", "team=a", "--metadata", "run=x=1")
    assert done.status == 0
    behaviours, atoms = (block.splitlines() for block in done.out.split("\n\n"))
    assert behaviours[0].split()[:3] == ["rank", "behaviour", "score"]
    assert [line.split()[1] for line in behaviours[1:]] == ["4"]
    assert atoms[0].split()[:3] == ["rank", "atom", "score"]
    assert [line.split()[1] for line in atoms[1:]] == ["7", "3"]
    assert AUDIT in done.err
    assert "warning: odd \\x1b[1m" in done.err
    sent = server.to("POST", "/v1/audits")[0].json()
    assert (sent["name"], sent["metadata"]) == ("mine", {"team": "a", "run": "x=1"})


def test_run_with_json_prints_the_audit_and_its_atoms_and_nothing_else(
    run: Run, server: ScriptedServer
) -> None:
    _audited(server, event(4, "audit.succeeded"))
    done = run("audit", "run", *INPUTS, "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json()["audit"]["status"] == "succeeded"
    assert [each["index"] for each in done.json()["atoms"]] == [7, 3]
    assert [each["index"] for each in done.json()["behaviours"]] == [4]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_of_a_file_that_is_not_finite_is_refused(run: Run, tmp_path: Path, value: str) -> None:
    (tmp_path / "a.toml").write_text(f"alpha = {value}\n")
    done = run("audit", "run", *INPUTS, "--config", tmp_path / "a.toml")
    assert done.status == 4
    assert "a.toml" in done.err
    assert "alpha" in done.err


def test_presets_are_printed_with_their_settings(run: Run) -> None:
    done = run("presets")
    assert done.status == 0
    assert [block.split(":")[0] for block in done.out.split("\n\n")] == list(PRESETS)
    assert '  vector_power = "+1/2"' in done.out
    assert run("presets", "--json").json() == msgspec.to_builtins(list(PRESETS.values()))


def test_run_without_waiting_prints_the_id(run: Run, server: ScriptedServer) -> None:
    _audited(server)
    done = run("audit", "run", *INPUTS, "--no-wait")
    assert (done.status, done.out) == (0, f"{AUDIT}\n")
    assert server.to("GET", ".*") == []


@pytest.mark.parametrize(
    ("code", "exit_status"), [("bad_row", 2), ("nothing_to_audit", 3), ("worker_lost", 2)]
)
def test_a_failed_audit_says_why_and_exits_so(
    run: Run, server: ScriptedServer, code: str, exit_status: int
) -> None:
    errors = [{"file": "data.jsonl", "line": 3, "field": "messages", "message": "is missing"}]
    error = {"code": code, "detail": "row 3 is wrong", "errors": errors}
    _audited(server, event(4, "audit.failed"), status="failed", error=error)
    done = run("audit", "run", *INPUTS)
    assert (done.status, done.out) == (exit_status, "")
    assert "row 3 is wrong" in done.err
    assert "file data.jsonl, line 3, field messages: is missing" in done.err
    told = run("audit", "wait", AUDIT, "--json")
    assert told.status == exit_status
    assert told.json()["error"]["errors"] == errors


def test_a_canceled_audit_exits_with_2(run: Run, server: ScriptedServer) -> None:
    _audited(server, event(4, "audit.canceled"), status="canceled")
    assert run("audit", "wait", AUDIT).status == 2


def test_a_timeout_says_that_the_audit_goes_on(run: Run, server: ScriptedServer) -> None:
    _audited(server, status="running")
    server.on("GET", f"{ONE}/events", Chunks([(0.0, b": x\n\n"), (20.0, b"")]))
    done = run("audit", "wait", AUDIT, "--timeout", "0.2")
    assert done.status == 1
    assert "goes on" in done.err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_says_how_to_come_back(server: ScriptedServer, flags: list[str]) -> None:
    _audited(server, status="running")
    server.on("GET", f"{ONE}/events", Chunks([(0.0, sse(event(1, "audit.queued"))), (60.0, b"")]))
    settings = environment(ATOMSCOPE_BASE_URL=server.url, ATOMSCOPE_API_KEY="ask_1")
    process = subprocess.Popen(
        [*COMMAND, "audit", "run", *INPUTS, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings,
    )  # fmt: skip
    _until(lambda: bool(server.to("GET", f"{ONE}/events")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    told = json.loads(out)["error"]["detail"] if flags else err
    assert f"audit {AUDIT} goes on" in told
    assert f"atomscope audit wait {AUDIT}" in told
    assert server.to("POST", f"{ONE}/cancel") == []


def test_get_shows_the_audit_on_lines_of_its_own(run: Run, server: ScriptedServer) -> None:
    hostile = audit("running", name="a\nstatus  succeeded\u202e", stage="extract")
    server.on("GET", ONE, Answer(200, {**hostile, "progress": {"done": 3, "total": 9, "unit": "documents"}}))
    done = run("audit", "get", AUDIT)
    assert "\\nstatus  succeeded\\u202e" in done.out
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("status")] == ["running"]
    assert "3 of 9 documents" in done.out
    assert run("audit", "get", AUDIT, "--json").json()["name"] == hostile["name"]


def test_list_goes_on_to_the_limit_and_filters(run: Run, server: ScriptedServer) -> None:
    pages = [Answer(200, page([audit(number=1), audit(number=2)], "c")), Answer(200, page([audit(number=3)]))]
    server.on("GET", "/v1/audits", *pages)
    done = run("audit", "list", "--limit", "3", "--status", "queued")
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [an_id("aud", n) for n in (1, 2, 3)]
    assert server.got[0].query == {"limit": "3", "status": "queued"}


def test_cancel_delete_and_download(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    server.on("GET", ONE, Answer(200, audit("running")))
    server.on("POST", f"{ONE}/cancel", Answer(202, audit("canceling")))
    server.on("DELETE", ONE, Answer(200, {"id": AUDIT, "deleted": True}))
    assert run("audit", "cancel", AUDIT).out == f"{AUDIT} canceling\n"
    assert run("audit", "delete", AUDIT).out == f"{AUDIT} deleted\n"
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    manifest = {"path": "manifest.json", "size": 2, "sha256": digest, "url": f"{server.url}/f"}
    listing = {"audit_id": AUDIT, "format_version": 1, "size": 2, "files": [manifest]}
    server.on("GET", f"{ONE}/bundle", Answer(200, listing)).on("GET", "/f", Answer(200, b"{}"))
    done = run("audit", "download", AUDIT, "--out", tmp_path / "b")
    assert done.out == f"{tmp_path / 'b'}\n"
    assert (tmp_path / "b/manifest.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("name", "content"),
    [("c.json", '{"alpha": 0.2, "n_atoms": 9}'), ("c.toml", "alpha = 0.2\nn_atoms = 9\n"),
     ("c", '{"alpha": 0.2, "n_atoms": 9}')],
)  # fmt: skip
def test_settings_come_from_json_or_toml(
    run: Run, server: ScriptedServer, tmp_path: Path, name: str, content: str
) -> None:
    _audited(server)
    (tmp_path / name).write_text(content)
    assert run("audit", "run", *INPUTS, "--no-wait", "--config", tmp_path / name).status == 0
    sent = server.to("POST", "/v1/audits")[0].json()["config"]
    assert sent == {"alpha": 0.2, "n_atoms": 9}


def test_a_preset_is_what_a_file_changes(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    _audited(server)
    (tmp_path / "c.json").write_text('{"n_atoms": 9}')
    command = ("audit", "run", *INPUTS, "--no-wait", "--preset", "paper")
    assert run(*command, "--config", tmp_path / "c.json").status == 0
    sent = server.to("POST", "/v1/audits")[0].json()
    assert (sent["preset"], sent["config"]) == ("paper", {"n_atoms": 9})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.json", '{"alfa": 1}', "alfa"),
        ("c.json", '{"alpha": "much"}', "$.alpha"),
        ("c.toml", "components = 0", "$.components"),
        ("c.toml", "components = ", "not TOML"),
        ("c.json", "{", "not JSON"),
        ("c.json", b"\xff\xfe", "not JSON"),
        ("c.toml", b"\xff\xfe", "not TOML"),
        ("c.json", "[]", "object"),
        ("c.json", b" " * 2_000_000, "longer"),
        ("none", None, "cannot be read"),
    ],
)
def test_settings_that_no_audit_takes_are_told_with_file_and_field(
    run: Run, server: ScriptedServer, tmp_path: Path, name: str, content: str | bytes | None, told: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    done = run("audit", "run", *INPUTS, "--config", file)
    assert done.status == 4
    assert str(file) in done.err
    assert told in done.err
    assert server.got == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "x"], "--out goes with --local"),
        (["--shard-cache", "x"], "--shard-cache goes with --local"),
        (["--dry-run"], "--dry-run goes with --local"),
        (["--no-wait", "--timeout", "3"], "--no-wait"),
        (["--metadata", "a=1", "--metadata", "a=2"], "twice"),
        (["--base-model", "no/such"], "neither the id"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    run: Run, server: ScriptedServer, flags: list[str], told: str
) -> None:
    done = run("audit", "run", *INPUTS, *flags)
    assert done.status == 4
    assert told in done.err
    assert server.got == []


def _until(condition: Any, seconds: float = 20.0) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
