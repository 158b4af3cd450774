"""One evaluation of a finished audit, from its targets to their verdicts."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from msgspec.structs import replace

from atomscope.errors import InputProblem, InvalidInput
from atomscope.steering import Target, parse_target
from atomscope.types.evaluation import (
    EvaluationQuery,
    EvaluationResult,
    JudgeDetector,
    LogProbabilityDetector,
    TargetEvaluation,
)
from atomscope_workers.evaluation.cost import NeutralCost
from atomscope_workers.evaluation.curve import Budget
from atomscope_workers.evaluation.detectors import Detect, text_detector
from atomscope_workers.evaluation.directions import make_dial
from atomscope_workers.evaluation.generation import Answering, end_tokens
from atomscope_workers.evaluation.judge import Judge
from atomscope_workers.evaluation.material import Material
from atomscope_workers.evaluation.passes import Passes, estimated
from atomscope_workers.evaluation.probe import Probe
from atomscope_workers.evaluation.prompts import halves
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.evaluation.target import Bench, Invited, evaluate_target
from atomscope_workers.evaluation.texts import Texts
from atomscope_workers.evaluation.verdicts import with_verdicts
from atomscope_workers.labels.endpoint import LabelEndpoint
from atomscope_workers.labels.settings import LabelSettings, required_judge_settings
from atomscope_workers.query import AuditFiles, audited_model


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
        material = Material(files, query, targets)
        lora = audited_model(files, files.bundle.plan)
        files.checkpoint()
        subject = Subject(lora, files.bundle.plan.token_budget, files.checkpoint)
        neutral = NeutralCost(subject, material.cost_documents)
        passes.done()
        baseline = neutral.baseline.cost
        times = query.perplexity_budget
        budget = Budget(query.kl_budget, None if times is None else times * baseline.perplexity)
        texts = Texts(files.bundle, subject, material.tokens, passes)
        bench = Bench(files.bundle, query, neutral, budget, texts, passes)
        answering = Answering(
            subject,
            material.tokenizer,
            end_tokens(material.tokenizer, lora.base, material.tokens.values()),
            query.sampling,
            query.seed,
        )
        neutral_halves = halves(material.neutral, query.seed, "neutral")
        unsteered: dict[str, str] = {}
        found: list[TargetEvaluation] = []
        for place, (asked, target) in enumerate(zip(query.targets, targets, strict=True)):
            probe = None
            if asked.detector is not None:
                probe = Probe(subject, answering, asking.of[place], unsteered, passes.done)
            inviting = halves(material.inviting[place], query.seed, target.key)
            invited = Invited(asked, target, inviting, neutral_halves, probe)
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
        warnings=material.warnings + asking.warnings(),
    )


# ---------------------------------------------------------------- what is asked


def _targets(files: AuditFiles, query: EvaluationQuery) -> list[Target]:
    """The targets; each is there, has a direction, and can be moved as far as is listed."""
    found: list[Target] = []
    strengths = query.strengths if isinstance(query.strengths, list) else []
    for place, asked in enumerate(query.targets):
        target = parse_target(asked.target)
        found.append(target)
        try:
            make_dial(files.bundle, target, query.power, query.unit, strengths)
        except InvalidInput as error:
            field = f"targets[{place}].target"
            problem = InputProblem(message=error.detail, field=field)
            raise InvalidInput(error.code, f"{field}: {error.detail}", [problem]) from error
    return found


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
