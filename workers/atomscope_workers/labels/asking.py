"""Asking for many labels: in order, to a limit, and what is kept and told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, Protocol

from atomscope.text import counted
from atomscope.types.labels import LabelRequest, Labels
from atomscope_workers.labels.answer import label_of
from atomscope_workers.labels.endpoint import Answer, LabelFailed
from atomscope_workers.labels.prompt import PROMPT_VERSION
from atomscope_workers.labels.settings import LabelSettings

GIVE_UP = 3
"""Failures in a row after which the endpoint is asked no more: each may take minutes."""

KEPT_ANSWER = 4000
"""Characters of an answer that are kept."""


class Asked(Protocol):
    """What answers: a `LabelEndpoint`."""

    def ask(self, messages: list[dict[str, str]]) -> Answer: ...


@dataclass(frozen=True)
class Question:
    """One label to ask for."""

    kind: Literal["behaviour", "atom"]
    index: int
    documents: list[int]
    """Rows of the data set whose excerpts are in `messages`."""
    contrast: list[int]
    messages: list[dict[str, str]]


def ask_labels(
    questions: Iterable[Question],
    count: int,
    settings: LabelSettings,
    endpoint: Asked,
    checkpoint: Callable[[int, int], None],
) -> Labels:
    """The record of every request, in the order of the `count` questions, up to the operator's limit.

    A request that fails costs its own label alone; after `GIVE_UP` in a row no more are sent. `checkpoint` is
    called before each with what is done and what there is to do; what it raises ends the asking.
    """
    total = min(count, settings.limit)
    requests: list[LabelRequest] = []
    failures = 0
    for question in islice(questions, total):
        checkpoint(len(requests), total)
        request = _asked(question, endpoint)
        requests.append(request)
        failures = failures + 1 if request.failure is not None else 0
        if failures == GIVE_UP:
            break
    return Labels(
        url=settings.url,
        model=settings.model,
        prompt_version=PROMPT_VERSION,
        options=settings.options,
        requests=requests,
        not_asked=count - len(requests),
    )


def label_warnings(labels: Labels) -> list[str]:
    """How many labels are missing, and why."""
    failed = [request.failure for request in labels.requests if request.failure is not None]
    found: list[str] = []
    if failed:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in Counter(failed).most_common())
        found.append(f"{len(failed)} of {counted(len(labels.requests), 'label')} could not be had: {reasons}")
    if labels.not_asked:
        last = [request.failure for request in labels.requests[-GIVE_UP:]]
        given_up = len(last) == GIVE_UP and None not in last
        why = f"{GIVE_UP} requests in a row had failed" if given_up else "the operator's limit was reached"
        unasked = counted(labels.not_asked, "atom or behaviour was", "atoms and behaviours were")
        found.append(f"{unasked} not asked a label for: {why}")
    return found


def _asked(question: Question, endpoint: Asked) -> LabelRequest:
    asked_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    answer: Answer | None = None
    label: str | None = None
    failure: str | None = None
    try:
        answer = endpoint.ask(question.messages)
    except LabelFailed as error:
        failure, attempts = error.reason, error.attempts
    else:
        attempts = answer.attempts
        label = label_of(answer.text)
        failure = None if label is not None else "an answer without a word"
    return LabelRequest(
        kind=question.kind,
        index=question.index,
        label=label,
        documents=question.documents,
        contrast=question.contrast,
        messages=question.messages,
        answer=None if answer is None else answer.text[:KEPT_ANSWER],
        answered_model=None if answer is None else answer.model,
        failure=failure,
        attempts=attempts,
        asked_at=asked_at,
    )
