"""One evaluation of a finished audit, from its targets to their verdicts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

from msgspec.structs import replace

from atomscope.bundle import layout, read_documents
from atomscope.errors import InputProblem, InvalidInput, SteeringError
from atomscope.steering import Target, parse_target
from atomscope.types.evaluation import (
    Chosen,
    EvaluationPoint,
    EvaluationQuery,
    EvaluationResult,
    EvaluationTarget,
    JudgeDetector,
    LogProbabilityDetector,
    TargetEvaluation,
)
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.evaluation import statistics
from atomscope_workers.evaluation.cost import NeutralCost
from atomscope_workers.evaluation.curve import Budget
from atomscope_workers.evaluation.detectors import Detect, text_detector
from atomscope_workers.evaluation.directions import make_dial
from atomscope_workers.evaluation.documents import audited_tokens, neutral_documents, own_documents
from atomscope_workers.evaluation.generation import Answering, end_tokens
from atomscope_workers.evaluation.judge import Judge
from atomscope_workers.evaluation.passes import Passes, estimated
from atomscope_workers.evaluation.probe import Probe
from atomscope_workers.evaluation.prompts import Asked, Halves, document_prompts, given_prompts, halves
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.evaluation.target import FEWEST_PROMPTS, Bench, Invited, evaluate_target
from atomscope_workers.labels.endpoint import LabelEndpoint
from atomscope_workers.labels.settings import LabelSettings, required_judge_settings
from atomscope_workers.models.base import CheckedBase, check_base, load_tokenizer
from atomscope_workers.pipeline.evidence import benjamini_hochberg
from atomscope_workers.query import AuditFiles, audited_form, audited_model
from atomscope_workers.stages.limits import length_limit

_ANY_LENGTH = 1 << 30


def evaluate(files: AuditFiles, query: EvaluationQuery) -> EvaluationResult:
    """Steer every target to every strength; measure what that does, what it costs, and what chance does.

    What is cheap is checked before the model is loaded. Whatever is raised, the model's weights are what they
    were. Memory: the model, a batch of it, and what `NeutralCost` and `Answering` say they hold.

    Raises `InvalidInput`: `invalid_steering` for a target or strength that cannot be steered, `old_bundle`
    where no tokens of documents are kept, `bad_row` for a prompt, `invalid_pattern` and `pattern_timeout`,
    `judge_unavailable` and `judge_limit`, `too_long` where an answer has no room, `strength_too_large` and
    `not_finite` where a listed strength leaves nothing to measure; and what loading the model raises.
    """
    start = time.monotonic()
    passes = Passes(files, estimated(query))
    targets = _targets(files, query)
    with ExitStack() as stack:
        asking = _Detectors(files, query, stack)
        prompts = _Prompts(files, query, targets)
        lora = audited_model(files, files.bundle.plan)
        files.checkpoint()
        subject = Subject(lora, files.bundle.plan.token_budget, files.checkpoint)
        neutral = NeutralCost(subject, prompts.cost_documents)
        passes.done()
        baseline = neutral.baseline.cost
        times = query.perplexity_budget
        budget = Budget(query.kl_budget, None if times is None else times * baseline.perplexity)
        bench = Bench(files.bundle, query, subject, neutral, budget, prompts.tokens, passes)
        answering = Answering(
            subject,
            prompts.tokenizer,
            end_tokens(prompts.tokenizer, lora.base, prompts.tokens.values()),
            query.sampling,
            query.seed,
        )
        unsteered: dict[str, str] = {}
        found: list[TargetEvaluation] = []
        for place, (asked, target) in enumerate(zip(query.targets, targets, strict=True)):
            probe = None
            if asked.detector is not None:
                probe = Probe(subject, answering, asking.of[place], unsteered, passes.done)
            inviting = halves(prompts.inviting[place], query.seed, target.key)
            invited = Invited(asked, target, inviting, prompts.neutral, probe)
            found.append(evaluate_target(bench, invited))
            if probe is not None and not invited.enough:
                found[-1] = replace(found[-1], verdict="too few prompts")
    passes.end()
    return EvaluationResult(
        targets=with_verdicts(found),
        baseline_cost=baseline,
        neutral_documents=neutral.n_documents,
        n_neutral_tokens=neutral.n_tokens,
        seconds=time.monotonic() - start,
        warnings=prompts.warnings + asking.warnings(),
    )


def with_verdicts(found: Sequence[TargetEvaluation]) -> list[TargetEvaluation]:
    """The targets with q-values over all their points, and the verdicts that follow."""
    tests = [
        None
        if point.equal_norm is None or point.equal_kl is None
        else max(point.equal_norm.p_value, point.equal_kl.p_value)
        for item in found
        for point in item.points
    ]
    q_values = iter(benjamini_hochberg(tests))
    told: list[TargetEvaluation] = []
    for item in found:
        points = [_told(point, next(q_values)) for point in item.points]
        by_strength = {point.strength: point.verdict for point in points}
        up, down = (_chosen_told(chosen, by_strength) for chosen in (item.up, item.down))
        verdict = item.verdict
        if verdict is None:
            verdict = statistics.better([side.verdict for side in (up, down) if side is not None])
        told.append(replace(item, points=points, up=up, down=down, verdict=verdict))
    return told


def _told(point: EvaluationPoint, q_value: float | None) -> EvaluationPoint:
    if q_value is None or point.equal_norm is None or point.equal_kl is None:
        return point
    percentiles = [point.equal_norm.percentile_95, point.equal_kl.percentile_95]
    return replace(point, q_value=q_value, verdict=statistics.verdict(point.shift, percentiles, q_value))


def _chosen_told(chosen: Chosen | None, verdicts: dict[float, Any]) -> Chosen | None:
    return None if chosen is None else replace(chosen, verdict=verdicts[chosen.strength])


# ---------------------------------------------------------------- what is asked


def _targets(files: AuditFiles, query: EvaluationQuery) -> list[Target]:
    """The targets; each is there, has a direction, and can be moved as far as is listed."""
    found: list[Target] = []
    strengths = query.strengths if isinstance(query.strengths, list) else []
    for place, asked in enumerate(query.targets):
        field = f"targets[{place}].target"
        try:
            target = parse_target(asked.target)
        except SteeringError as error:
            raise _unusable(field, str(error)) from error
        if target in found:
            raise _unusable(field, f"{target} is given twice")
        found.append(target)
        try:
            make_dial(files.bundle, target, query.power, query.unit, strengths)
        except InvalidInput as error:
            raise _unusable(field, error.detail) from error
    return found


def _unusable(field: str, message: str) -> InvalidInput:
    return InvalidInput(
        "invalid_steering", f"{field}: {message}", [InputProblem(message=message, field=field)]
    )


class _Detectors:
    """The detectors of all targets, ready before anything is run."""

    def __init__(self, files: AuditFiles, query: EvaluationQuery, stack: ExitStack) -> None:
        self.of: list[Detect | None] = []
        """By target; None of a log-probability, and where there is none."""
        self._judges: list[Judge] = []
        endpoint: LabelEndpoint | None = None
        settings: LabelSettings | None = None
        for place, asked in enumerate(query.targets):
            field, detector = f"targets[{place}].detector", asked.detector
            if detector is None or isinstance(detector, LogProbabilityDetector):
                self.of.append(None)
            elif isinstance(detector, JudgeDetector):
                if endpoint is None or settings is None:
                    settings = required_judge_settings(os.environ)
                    endpoint = stack.enter_context(LabelEndpoint(settings, files.checkpoint))
                self._judges.append(Judge(detector.question, endpoint, settings, field))
                self.of.append(self._judges[-1])
            else:
                self.of.append(text_detector(detector, field))

    def warnings(self) -> list[str]:
        undecided = sum(judge.undecided for judge in self._judges)
        told = "answers of the judge were neither yes nor no, and counted as no"
        return [f"{undecided} {told}"] if undecided else []


class _Prompts:
    """The prompts of all targets and the documents on which cost is measured."""

    def __init__(self, files: AuditFiles, query: EvaluationQuery, targets: Sequence[Target]) -> None:
        self._files, self._query = files, query
        self.warnings: list[str] = []
        base = check_base(files.base())
        limit = length_limit(base.config, files.spec.config.max_length)
        self.tokenizer = load_tokenizer(base.folder)
        self._rows = RowTokenizer(self.tokenizer, limit, files.spec.config.chat_template)
        self._form: Literal["chat", "text"] = audited_form(files, files.bundle.plan)
        self._vocabulary = int(base.config.vocab_size)
        self._longest = _longest_prompt(base, query)
        self.tokens = {row: item for row, item in audited_tokens(files).items() if item.target_mask.any()}
        free, others = neutral_documents(files.bundle, targets, self.tokens, query.seed)
        self.cost_documents = self._cost_documents(free, others)
        asked = self._neutral(free)
        self.neutral: Halves = halves(asked, query.seed, "neutral")
        self.inviting = [
            self._inviting(place, item, target)
            for place, (item, target) in enumerate(zip(query.targets, targets, strict=True))
        ]
        measured = any(item.detector is not None for item in query.targets)
        if measured and len(asked) < FEWEST_PROMPTS:
            self.warnings.append(
                f"{len(asked)} neutral prompts are too few: at least {FEWEST_PROMPTS} are needed"
            )
        if self._rows.truncated:
            self.warnings.append(f"{self._rows.truncated} completions were cut to {limit} tokens")

    def _cost_documents(self, free: Sequence[int], others: Sequence[int]) -> list[TokenizedDocument]:
        wanted = self._query.neutral_documents
        rows = [*free, *others][:wanted]
        if len(free) < len(rows):
            self.warnings.append(
                f"cost is measured on {len(rows) - len(free)} documents on which a target has some strength: "
                f"only {len(free)} are free of every target"
            )
        return [self.tokens[row] for row in rows]

    def _neutral(self, free: Sequence[int]) -> list[Asked]:
        """Given, or of documents: first those on which cost is not measured."""
        query = self._query
        if query.neutral is not None:
            found = given_prompts(
                "neutral", "neutral", query.neutral, self._rows, self._form, field="neutral",
                longest=self._longest, vocabulary=self._vocabulary,
            )  # fmt: skip
            if any(isinstance(item.detector, LogProbabilityDetector) for item in query.targets):
                _check_completions(found, "neutral")
            return found
        rows = [*free[query.neutral_documents :], *free[: query.neutral_documents]]
        return self._of_documents("neutral", "neutral", rows)

    def _inviting(self, place: int, asked: EvaluationTarget, target: Target) -> list[Asked]:
        if asked.detector is None:
            return []
        if asked.inviting is not None:
            field = f"targets[{place}].inviting"
            found = given_prompts(
                "inviting", target.key, asked.inviting, self._rows, self._form, field=field,
                longest=self._longest, vocabulary=self._vocabulary,
            )  # fmt: skip
            if isinstance(asked.detector, LogProbabilityDetector):
                _check_completions(found, field)
        else:
            found = self._of_documents("inviting", target.key, own_documents(self._files.bundle, target))
        if len(found) < FEWEST_PROMPTS:
            told = _too_few(len(found), f"inviting prompts of {target}")
            self.warnings.append(f"{told}; documents of plain text have none" if not found else told)
        return found

    def _of_documents(self, kind: Any, name: str, rows: Sequence[int]) -> list[Asked]:  # noqa: ANN401
        known = {item.document: item for item in read_documents(self._files.read(layout.DOCUMENTS), rows)}
        return document_prompts(
            kind, name, rows, self.tokens, known, count=self._query.prompts, longest=self._longest
        )


def _too_few(count: int, what: str) -> str:
    return f"{count} {what} are too few: at least {FEWEST_PROMPTS} are needed"


def _check_completions(found: Sequence[Asked], field: str) -> None:
    missing = next((place for place, item in enumerate(found) if item.completion is None), None)
    if missing is not None:
        where = f"{field}[{missing}].completion"
        message = "the detector `log-probability` needs the answer whose probability is measured"
        raise InvalidInput("bad_row", f"{where}: {message}", [InputProblem(message=message, field=where)])


def _longest_prompt(base: CheckedBase, query: EvaluationQuery) -> int:
    """Tokens of a prompt that leave room for an answer. Raises `InvalidInput` (`too_long`) where none do."""
    positions, room = length_limit(base.config, _ANY_LENGTH), query.sampling.max_new_tokens
    if positions <= room:
        message = f"the model has {positions} positions, fewer than a prompt and {room} new tokens take"
        field = "sampling.max_new_tokens"
        raise InvalidInput("too_long", message, [InputProblem(message=message, field=field)])
    return positions - room
