"""Evaluations of steering: from what a caller gives to a query, and to its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, SupportsIndex, TypedDict, cast, get_args, get_type_hints

import msgspec

from atomscope.bundle.atom_list import AtomAttributes
from atomscope.bundle.behaviour_list import BehaviourAttributes
from atomscope.bundle.strengths import Steerable, target_of
from atomscope.client._jobs import EVALUATIONS, OnLook
from atomscope.client._progress import display
from atomscope.client._service import Service
from atomscope.decoding import with_choices
from atomscope.errors import SteeringError, UsageError
from atomscope.types.evaluation import (
    Detector,
    EvaluationQuery,
    EvaluationResult,
    EvaluationTarget,
    JudgeDetector,
    LogProbabilityDetector,
    NamedDetector,
    PatternDetector,
    Prompt,
    Sampling,
)
from atomscope.types.resources import Evaluation
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Unit

NAMED: tuple[str, ...] = get_args(get_type_hints(NamedDetector)["name"])
"""Detectors that are built in."""
DETECTORS = (*NAMED, "regex:PATTERN", "judge:QUESTION", "log-probability")
"""How a detector is written as a text."""

Target = EvaluationTarget | Mapping[str, Any] | Steerable
Targets = Target | Iterable[Target]
GivenDetector = Detector | Mapping[str, Any] | str
GivenPrompts = Sequence[Prompt | Mapping[str, Any] | str]


class EvaluationSettings(TypedDict, total=False):
    """The settings of an `EvaluationQuery`; those that are not given have its defaults."""

    unit: Unit
    power: VectorPower | None
    kl_budget: float
    perplexity_budget: float | None
    neutral: GivenPrompts | None
    prompts: int
    neutral_documents: int
    random_directions: int
    random_at: Literal["points", "chosen"]
    sampling: Sampling | Mapping[str, Any]
    answers: int
    seed: int


def parse_detector(text: str) -> Detector:
    """The detector that a text names, one of `DETECTORS`; raises `UsageError` for another."""
    kind, colon, rest = text.partition(":")
    try:
        if kind == "regex" and colon:
            return msgspec.convert({"type": "pattern", "pattern": rest}, PatternDetector)
        if kind == "judge" and colon:
            return msgspec.convert({"type": "judge", "question": rest}, JudgeDetector)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a detector: {text[:50]!r}: {error}") from error
    if text == "log-probability":
        return LogProbabilityDetector()
    if text in NAMED:
        return msgspec.convert({"type": "named", "name": text}, NamedDetector)
    raise UsageError(f"not a detector: {text[:50]!r}: one of {', '.join(DETECTORS)} is expected")


def make_evaluation(
    targets: Targets,
    strengths: Sequence[float] | Literal["auto"] = "auto",
    detector: GivenDetector | None = None,
    audit_id: str | None = None,
    **settings: Any,  # noqa: ANN401  (checked here)
) -> EvaluationQuery:
    """The query; `detector` is that of the targets that bring none.

    Raises `UsageError` for one that the service would refuse, and for a target of another audit.
    """
    try:
        given = _builtins(settings)
        if given.get("neutral") is not None:
            given["neutral"] = _prompts(given["neutral"])
        given["targets"] = [_target(item, detector, audit_id) for item in _listed(targets)]
        given["strengths"] = strengths if isinstance(strengths, str) else [_plain(item) for item in strengths]
        query = msgspec.convert(given, EvaluationQuery)
        msgspec.json.encode(query)
    except (msgspec.MsgspecError, SteeringError, TypeError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"not an evaluation: {with_choices(str(error), EvaluationQuery)}") from error
    return query


async def evaluate(
    service: Service,
    audit_id: str,
    query: EvaluationQuery,
    timeout: float | None,
    progress: bool | None,
    on_look: OnLook[Evaluation] | None = None,
) -> EvaluationResult:
    """The result of a new evaluation; raises `EvaluationFailed`, and `WaitTimeout` (it goes on)."""
    return await _result(service, await EVALUATIONS.ask(service, audit_id, query), timeout, progress, on_look)


async def finish_evaluation(
    service: Service,
    audit_id: str,
    evaluation_id: str,
    timeout: float | None,
    progress: bool | None,
    on_look: OnLook[Evaluation] | None = None,
) -> EvaluationResult:
    """The result of one that was asked before."""
    asked = await EVALUATIONS.get(service, audit_id, evaluation_id)
    return await _result(service, asked, timeout, progress, on_look)


async def _result(
    service: Service,
    asked: Evaluation,
    timeout: float | None,
    progress: bool | None,
    on_look: OnLook[Evaluation] | None,
) -> EvaluationResult:
    bars = display(progress)
    ended = await EVALUATIONS.finish(service, asked, timeout, bars=bars, on_look=on_look)
    return cast(EvaluationResult, ended.result)


def _listed(targets: Any) -> list[Target]:  # noqa: ANN401  (raises `TypeError` for what is no list)
    alone = (EvaluationTarget, AtomAttributes, BehaviourAttributes, SupportsIndex, str, Mapping)
    return [cast(Target, targets)] if isinstance(targets, alone) else list(targets)


def _target(given: Target, detector: GivenDetector | None, audit_id: str | None) -> dict[str, Any]:
    made: dict[str, Any]
    if isinstance(given, EvaluationTarget | Mapping):
        made = dict(_builtins(given))
        if made.get("inviting") is not None:
            made["inviting"] = _prompts(made["inviting"])
    else:
        made = {"target": target_of(given, audit_id).key}
    if made.get("detector") is None:
        made["detector"] = detector
    told = made["detector"]
    made["detector"] = _builtins(parse_detector(told) if isinstance(told, str) else told)
    return made


def _prompts(given: Any) -> Any:  # noqa: ANN401  (msgspec checks them)
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    return [{"prompt": item} if isinstance(item, str) else item for item in given]


def _builtins(value: Any) -> Any:  # noqa: ANN401
    """As JSON has it, so that what was made without any check is checked."""
    return msgspec.to_builtins(value)


def _plain(number: Any) -> Any:  # noqa: ANN401  (msgspec refuses what is none)
    """NumPy's numbers as Python's."""
    return number if isinstance(number, bool) or not isinstance(number, Real) else float(number)
