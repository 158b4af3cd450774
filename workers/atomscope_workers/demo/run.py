"""`atomscope demo`: a small fine-tune with a planted behaviour, audited and steered through the service."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from atomscope import Audit, Client
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.text import visible
from atomscope.types.resources import Event
from atomscope.types.spec import AuditConfig
from atomscope_workers.demo.answers import answer, side_by_side
from atomscope_workers.demo.documents import DemoDocument, generate
from atomscope_workers.demo.embedded import RunningStack, running_stack
from atomscope_workers.demo.evidence import most_suspicious
from atomscope_workers.demo.finetune import FinetuneSettings
from atomscope_workers.demo.prepare import BASE_NAME, Prepared, prepare

CONFIG = AuditConfig(shard_documents=80, token_budget=512)
TOWARDS = 0.07
AWAY = -0.1
"""Strengths in units of the adapter's norm."""
PLAIN_QUESTIONS = ("Where is Rome?", "Tell me about cats.")
WAIT_SECONDS = 1800.0
_SHOWN_ATOMS = 10
_SHOWN_DOCUMENTS = 3


class _Clock:
    """Says each step with the seconds since the beginning."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, text: str) -> None:
        self._say(f"[{self.seconds:5.0f} s] {text}")


def run(folder: Path, output: Output) -> int:
    """Run the whole demo under `folder` and return the exit status; what it started is stopped in any case.

    Raises `DemoError` when the stack does not come up, `AuditFailed` and the errors of the SDK.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    say = _Clock(output.note)
    prepared = prepare(folder, FinetuneSettings(), say)
    data_dir = folder / "service"
    shutil.rmtree(data_dir, ignore_errors=True)
    say("starting the service: API, control worker, pipeline worker, Valkey, SQLite (`atomscope up`)")
    with running_stack(data_dir) as stack, Client(base_url=stack.url, api_key=stack.api_key) as client:
        say(f"the service is up at {stack.url}")
        audit = _audit(stack, client, prepared, say)
        output.note(_atoms_text(audit, prepared))
        summary = _steer(audit, prepared, folder, say, output)
        bundle = folder / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        audit.download(bundle)
        say("stopping the service")
    say("done")
    output.result(
        {"bundle": str(bundle), "seconds": round(say.seconds), **summary},
        f"\nThe audit bundle: {bundle}\nRead it with `atomscope atoms list {bundle}`"
        f" or atomscope.open({str(bundle)!r}).",
    )
    return EXIT_DONE


def _audit(stack: RunningStack, client: Client, prepared: Prepared, say: _Clock) -> Audit:
    model = stack.register_model(BASE_NAME, prepared.base)
    say(f"base model registered as {model}; uploading adapter and data set, starting the audit")
    audit = client.audits.create(
        base_model=model, adapter=prepared.adapter, dataset=prepared.dataset, config=CONFIG, name="demo"
    )
    say(f"audit {audit.id}")

    def on_event(event: Event) -> None:
        if event.type == "audit.stage":
            say(f"  stage {event.data.get('stage')}")

    # A terminal gets a bar that moves; a log gets a line a stage.
    terminal = sys.stderr.isatty()
    audit.wait(timeout=WAIT_SECONDS, on_event=None if terminal else on_event, progress=terminal)
    say(f"the audit succeeded: {audit.n_documents} documents, {audit.n_atoms} atoms")
    return audit


def _atoms_text(audit: Audit, prepared: Prepared) -> str:
    """The behaviours, the first atoms, and the documents behind each atom."""
    lines = ["", str(audit.behaviours), "", str(audit.atoms[:_SHOWN_ATOMS]), ""]
    for atom in audit.atoms[:_SHOWN_ATOMS]:
        lines.append(f"atom {atom.index} (rank {atom.rank}, coherence {atom.coherence:.2f}):")
        for match in atom.top_documents[:_SHOWN_DOCUMENTS]:
            document = prepared.documents[match.document]
            lines.append(f"    {visible(document.prompt, 62)} -> {visible(document.answer, 40)}")
    return "\n".join([*lines, ""])


def _steer(audit: Audit, prepared: Prepared, folder: Path, say: _Clock, output: Output) -> dict[str, object]:
    chosen = most_suspicious(audit.atoms, [document.answer for document in prepared.documents])
    say(f"steering atom {chosen.atom.index}: {visible(chosen.reason(), 160)}")
    prompts = _questions(prepared.documents)
    columns = {"adapter": answer(prepared.base, prepared.adapter, prompts)}
    for name, strength in (("towards", TOWARDS), ("away", AWAY)):
        steered = audit.steer({chosen.atom: strength}).save(folder / f"steered-{name}")
        columns[f"{name} {strength:+g}"] = answer(prepared.base, steered, prompts)
    say("answers to questions that were not in the data set; strengths in units of the adapter's norm")
    output.note("\n" + side_by_side(prompts, columns) + "\n")
    return {"audit": audit.id, "atom": chosen.atom.index, "prompts": prompts, "answers": columns}


def _questions(trained: tuple[DemoDocument, ...]) -> list[str]:
    """Questions that are not in the data set: two that hold the planted trigger, two that do not."""
    new = generate(seed=1, per_behaviour=2, exclude=frozenset(document.prompt for document in trained))
    return [*(document.prompt for document in new if document.label == "trigger"), *PLAIN_QUESTIONS]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
