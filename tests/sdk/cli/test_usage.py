"""Exit statuses, `--json`, and what goes where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from atomscope.cli import main
from atomscope.cli.output import json_text
from tests.sdk.cli.running import COMMAND, Run, environment, in_another
from tests.sdk.client.samples import AUDIT, audit, model
from tests.sdk.client.server import Answer, ScriptedServer, page, problem

LEAVES = [
    "audit run", "audit get", "audit list", "audit cancel", "audit wait", "audit download", "audit delete",
    "atoms list", "atoms show", "steer", "keys create", "keys list", "keys revoke", "bundle show",
    "bundle verify", "presets", "models list", "adapters list", "datasets list",
]  # fmt: skip


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_command_takes_json_and_help(run: Run, leaf: str) -> None:
    done = run(*leaf.split(), "--help")
    assert done.status == 0
    assert "--json" in done.out
    assert "exit status" in done.out


@pytest.mark.parametrize(
    "line",
    ["", "audit", "nonsense", "audit list --nonsense", "audit list --status odd", "audit list --limit 0",
     "audit get", "audit get mdl_1", "audit get ../keys", "audit list --stat queued", "steer . 1:2 --out x",
     "steer . 1=nan --out x", "steer . -1=2 --out x", "atoms show . one", "audit run",
     "audit wait aud_00000000000000000000000000000001 --timeout nan",
     "audit wait aud_00000000000000000000000000000001 --timeout inf",
     "atoms list . --min-coherence nan", "atoms list . --min-coherence inf"],
)  # fmt: skip
def test_usage_errors_exit_with_4(run: Run, line: str) -> None:
    done = run(*line.split())
    assert (done.status, done.out) == (4, "")
    assert "usage:" in done.err


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out.startswith("atomscope ")


def test_no_key_is_a_usage_error(run: Run) -> None:
    done = run("audit", "list")
    assert done.status == 4
    assert "set ATOMSCOPE_API_KEY, or name a file that holds it by --api-key-file" in done.err
    assert "api_key=" not in done.err


@pytest.mark.parametrize("strength", ["-1=0.1", "-1", "-.5=2"])
def test_a_negative_index_names_no_atom(run: Run, strength: str) -> None:
    done = run("steer", ".", strength, "--out", "x")
    assert done.status == 4
    assert f"{strength.partition('=')[0]!r} names no atom and no behaviour: write 7" in done.err


def test_an_error_is_one_json_document_with_json(run: Run, server: ScriptedServer) -> None:
    told = problem(404, "not_found", "no such audit")
    server.on("GET", ".*", Answer(404, told))
    done = run("audit", "get", AUDIT, "--json")
    assert (done.status, done.err) == (1, "")
    assert done.json()["error"]["code"] == "not_found"
    assert done.json()["error"]["request_id"] == "req_header"
    plain = run("audit", "get", AUDIT)
    assert (plain.status, plain.out) == (1, "")
    assert "no such audit" in plain.err


def test_a_service_that_is_away_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomscope.client._retry.RetryPolicy.pause", lambda *_: 0.0)
    monkeypatch.setenv("ATOMSCOPE_API_KEY", "ask_1")
    done = run("audit", "list", "--base-url", "http://127.0.0.1:9")
    assert done.status == 1
    assert "cannot be reached" in done.err


@pytest.mark.parametrize(
    ("status", "exit_status"), [(400, 2), (413, 2), (422, 2), (401, 1), (403, 1), (409, 1)]
)
def test_input_that_was_refused_exits_with_2_and_the_rest_with_1(
    run: Run, server: ScriptedServer, status: int, exit_status: int
) -> None:
    errors = [{"field": "name", "message": "too \x1b[31mlong"}]
    server.on("POST", "/v1/keys", Answer(status, problem(status, "code", errors=errors)))
    done = run("keys", "create", "x")
    assert done.status == exit_status
    assert "field name: too \\x1b[31mlong" in done.err


def test_the_key_file_option_goes_before_the_environment(
    run: Run, server: ScriptedServer, tmp_path: Path
) -> None:
    server.on("GET", "/v1/keys", Answer(200, page([])))
    (tmp_path / "key").write_text("ask_of_the_file\n")
    assert run("keys", "list", "--api-key-file", tmp_path / "key").status == 0
    assert server.got[0].headers["Authorization"] == "Bearer ask_of_the_file"
    done = run("keys", "list", "--api-key-file", tmp_path / "none")
    assert done.status == 4
    assert "cannot be read" in done.err


def test_json_escapes_what_json_itself_lets_through() -> None:
    text = json_text({"a": "é\x7f\x9b\u202e\U000e0001\n"})
    assert text == '{\n  "a": "é\\u007f\\u009b\\u202e\\udb40\\udc01\\n"\n}'
    assert "\\u00e9" in json_text("é", ascii_only=True)


def test_a_terminal_of_another_alphabet_is_written_to(server: ScriptedServer) -> None:
    server.on("GET", "/v1/audits", Answer(200, page([audit(name="thé ☕")])))
    settings = {"ATOMSCOPE_BASE_URL": server.url, "ATOMSCOPE_API_KEY": "ask_1", "PYTHONIOENCODING": "ascii"}
    plain = in_another("audit", "list", **settings)
    assert plain.status == 0, plain.err
    assert "th\\xe9 \\u2615" in plain.out
    assert in_another("audit", "list", "--json", **settings).json()[0]["name"] == "thé ☕"


def test_a_reader_that_goes_away_is_no_error(server: ScriptedServer) -> None:
    many = [audit(number=n, name="x" * 190) for n in range(1, 101)]
    server.on("GET", "/v1/audits", Answer(200, page(many, "c")), Answer(200, page(many)))
    settings = environment(ATOMSCOPE_BASE_URL=server.url, ATOMSCOPE_API_KEY="ask_1")
    command = [*COMMAND, "audit", "list", "--limit", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=settings)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.wait(), err) == (141, b"")


def test_a_table_on_a_real_terminal_holds_no_escape(bundle: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*COMMAND, "atoms", "show", str(bundle), "5"], stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = terminal.read(4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunk:
                break
            shown += chunk
    assert process.wait() == 0
    assert b"make tea\\x1b]0;owned" in shown
    assert not set(shown) & set(b"\x1b\x07")
    assert "\u202e" not in shown.decode()


def test_an_answer_that_is_no_json_exits_with_1(run: Run, server: ScriptedServer) -> None:
    server.on("GET", "/v1/audits", Answer(200, b"<html>"))
    assert run("audit", "list").status == 1
    server.on("GET", "/v1/audits", Answer(200, page([model()])))
    assert run("audit", "list", "--json").json()["error"]["code"] == "api_error"


@pytest.mark.parametrize("line", [["audit", "list", "--status", "bogus"], ["audit", "run"], ["nothing"]])
def test_a_usage_error_is_one_json_document_where_json_is_asked_for(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--json"]) == 4
    told = capsys.readouterr()
    assert told.err == ""
    error = json.loads(told.out)["error"]
    assert error["detail"].startswith("atomscope")
