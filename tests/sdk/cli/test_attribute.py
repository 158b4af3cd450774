"""`atomscope attribute`, on an audit of the service and on a bundle in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atomscope.bundle import Bundle
from atomscope.client import _jobs
from atomscope.errors import InvalidInput
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.resources import Progress
from tests.sdk.cli.running import Run
from tests.sdk.cli.small_bundle import HOSTILE
from tests.sdk.client.samples import AUDIT, an_id, attribution, attribution_result, audit
from tests.sdk.client.server import Answer, ScriptedServer

ASKED = f"/v1/audits/{AUDIT}/attributions"
MADE = f"{ASKED}/{an_id('atr')}"
TEXTS = ("--prompt", "p", "--completion", "c")
UNSAFE = set("\x1b\x07\x9b\r\u202e\u2066")


@pytest.fixture
def audited(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setattr(_jobs, "FIRST_PAUSE", 0.01)
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    server.on("POST", ASKED, Answer(202, attribution()))
    return server.on("GET", MADE, Answer(200, attribution("succeeded")))


def test_an_attribution_is_shown_with_its_losses_atoms_and_documents(
    run: Run, audited: ScriptedServer
) -> None:
    done = run("attribute", AUDIT, *TEXTS)
    assert (done.status, done.err) == (0, "")
    assert "0.500 nats a token, 2.500 under the base" in done.out
    assert "25.0%" in done.out
    parts = done.out.split("\n\n")
    assert [part.splitlines()[0] for part in parts[1:]] == [
        "behaviours",
        "atoms",
        "documents, by cosine of codes",
    ]
    assert parts[3].split()[-5:] == ["4", "how", "to", "make", "tea"]
    assert audited.to("POST", ASKED)[0].json()["documents"] == 10


def test_json_is_the_result_itself(run: Run, audited: ScriptedServer) -> None:
    assert run("attribute", AUDIT, *TEXTS, "--json").json() == attribution_result()


def test_training_text_and_warnings_cannot_act_on_the_terminal(run: Run, audited: ScriptedServer) -> None:
    hostile = attribution_result(
        documents=[{"document": 4, "value": 0.9, "preview": HOSTILE}],
        behaviours=[{"behaviour": 1, "rank": 1, "strength": 0.5, "keywords": [], "label": HOSTILE}],
        warnings=[f"odd {HOSTILE}"],
        atoms=[],
        n_target_tokens=0,
    )
    audited.on("GET", MADE, Answer(200, attribution("succeeded", result=hostile)))
    done = run("attribute", AUDIT, *TEXTS)
    assert done.status == 0
    assert not set(done.out + done.err) & UNSAFE
    assert "warning: odd" in done.err
    assert "no atom" in done.out


def test_texts_come_from_files_too(run: Run, audited: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("how to\nmake tea? ünï", encoding="utf-8")
    run("attribute", AUDIT, "--prompt", f"@{tmp_path / 'p.txt'}", "--completion", "boil", "--exact")
    sent = audited.to("POST", ASKED)[0].json()
    assert (sent["prompt"], sent["completion"], sent["exact"]) == ("how to\nmake tea? ünï", "boil", True)


def test_a_byte_order_mark_is_left_out_and_line_ends_are_kept(
    run: Run, audited: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    run("attribute", AUDIT, "--prompt", f"@{tmp_path / 'p.txt'}", "--completion", "c")
    assert audited.to("POST", ASKED)[0].json()["prompt"] == "one\r\ntwo\n"
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    (tmp_path / "m.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(turns).encode())
    assert run("attribute", AUDIT, "--messages", tmp_path / "m.json").status == 0
    assert audited.to("POST", ASKED)[1].json()["messages"] == turns


@pytest.mark.parametrize("wrapped", [False, True])
def test_messages_come_as_a_list_or_a_row(
    run: Run, audited: ScriptedServer, tmp_path: Path, wrapped: bool
) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    (tmp_path / "m.json").write_text(json.dumps({"messages": turns} if wrapped else turns))
    assert run("attribute", AUDIT, "--messages", tmp_path / "m.json").status == 0
    assert audited.to("POST", ASKED)[0].json()["messages"] == turns


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"5", "holds no list"),
        (b'{"turns": []}', "under `messages`, is expected"),
        (b'{"messages": [], "tools": [{"type": "function"}]}', "`tools` is not part of a query"),
        (b'{"messages": [], "system": "s"}', "`system` is not part of a query"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (None, "cannot be read as JSON"),
    ],
)
def test_a_messages_file_of_no_use_is_named(
    run: Run, audited: ScriptedServer, tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "m.json").write_bytes(content)
    done = run("attribute", AUDIT, "--messages", tmp_path / "m.json")
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert audited.to("POST", ASKED) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "not a query"),
        (["--prompt", "p"], "not a query"),
        ([*TEXTS, "--documents", "1001"], "not a query"),
        ([*TEXTS, "--documents", "-1"], "--documents"),
        ([*TEXTS, "--base-model", "base"], "--base-model is for a bundle"),
        (["--prompt", "@nowhere", "--completion", "c"], "nowhere cannot be read"),
        (["--prompt", "@a\0b", "--completion", "c"], "cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(
    run: Run, audited: ScriptedServer, flags: list[str], told: str
) -> None:
    done = run("attribute", AUDIT, *flags)
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert audited.to("POST", ASKED) == []


def test_a_failed_attribution_ends_as_a_failed_audit_does(run: Run, audited: ScriptedServer) -> None:
    error = {"code": "bad_row", "detail": "no role", "errors": [{"field": "messages[1].role"}]}
    audited.on("GET", MADE, Answer(200, attribution("failed", error=error)))
    done = run("attribute", AUDIT, *TEXTS)
    assert (done.status, done.out) == (2, "")
    assert "bad_row" in done.err
    told = run("attribute", AUDIT, *TEXTS, "--json").json()["error"]
    assert (told["code"], told["errors"]) == ("bad_row", error["errors"])


def test_a_wait_that_runs_out_says_that_it_goes_on(run: Run, audited: ScriptedServer) -> None:
    audited.on("GET", MADE, Answer(200, attribution("running")))
    done = run("attribute", AUDIT, *TEXTS, "--timeout", "0.05")
    assert done.status == 1
    assert "it goes on" in done.err


# -------------------------------------------------------------------- a bundle


class Runner:
    """Stands for the pipeline, which has tests of its own."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[Bundle, Path, AttributionQuery]] = []

    def attribute(
        self, bundle: Bundle, base_model: Path, query: AttributionQuery, on_progress: Any
    ) -> AttributionResult:
        self.asked.append((bundle, base_model, query))
        on_progress(Progress(done=3, total=7, unit="steps"))
        if self.error is not None:
            raise self.error
        return msgspec.convert(attribution_result(exact=True), AttributionResult)


def test_a_bundle_is_asked_in_process(run: Run, local: Any, bundle: Path) -> None:
    runner = local(Runner())
    done = run("attribute", bundle, *TEXTS, "--base-model", "base", "--exact", "--documents", "3")
    assert (done.status, done.err) == (0, "")
    assert "documents, by cosine of whitened gradients" in done.out
    ((asked, base, query),) = runner.asked
    assert (asked.manifest.audit_id, base) == (f"aud_{7:032x}", Path("base"))
    assert (query.prompt, query.completion, query.exact, query.documents) == ("p", "c", True, 3)


@pytest.mark.parametrize(("flags", "drawn"), [([], True), (["--json"], False)])
def test_a_terminal_sees_how_far_a_bundles_answer_is(
    run: Run, local: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], drawn: bool
) -> None:
    local(Runner())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    done = run("attribute", bundle, *TEXTS, "--base-model", "base", *flags)
    assert done.status == 0
    assert ("attribute" in done.err, "3/7" in done.err) == (drawn, drawn)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--base-model DIR"),
        (["--base-model", "base", "--timeout", "3"], "--timeout has no meaning"),
        (["--base-model", "base", "--base-url", "http://x"], "no service is asked"),
    ],
)
def test_what_has_no_meaning_for_a_bundle_is_refused(
    run: Run, local: Any, bundle: Path, flags: list[str], told: str
) -> None:
    runner = local(Runner())
    done = run("attribute", bundle, *TEXTS, *flags)
    assert (done.status, done.out) == (4, "")
    assert told in done.err
    assert runner.asked == []


def test_bad_input_of_a_bundle_exits_as_the_services_would(run: Run, local: Any, bundle: Path) -> None:
    local(Runner(InvalidInput("input_changed", "base is not the base model that was audited")))
    done = run("attribute", bundle, *TEXTS, "--base-model", "base")
    assert (done.status, done.out) == (2, "")
    assert "not the base model that was audited" in done.err


@pytest.mark.parametrize("registered", [True, False])
def test_without_the_workers_extra_the_pip_line_is_printed(
    run: Run, local: Any, bundle: Path, registered: bool
) -> None:
    if registered:
        local(Runner(ModuleNotFoundError("No module named 'torch'", name="torch")))
    done = run("attribute", bundle, *TEXTS, "--base-model", "base")
    assert (done.status, done.out) == (4, "")
    assert done.err.splitlines()[-1] == "pip install 'atomscope[workers]'"


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra(run: Run, local: Any, bundle: Path) -> None:
    local(Runner(ModuleNotFoundError("No module named 'atomscope.nope'", name="atomscope.nope")))
    with pytest.raises(ModuleNotFoundError):
        run("attribute", bundle, *TEXTS, "--base-model", "base")
