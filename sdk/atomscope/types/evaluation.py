"""Evaluations: what turning a behaviour up and down does, what it costs, and whether chance does the same.

Each *target* (an atom or a behaviour) is steered to every strength. A *detector* says of each answer whether
the behaviour is in it, or, of given completions, how likely they are. Beside every point stand the model
unsteered, random directions of the same norm and of the same cost, and an atom that has nothing to do with
it. The strength is chosen on one half of the prompts and reported on the other.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec

from atomscope.types.attribution import MAX_QUERY_DEPTH, deeper_than
from atomscope.types.spec import VectorPower
from atomscope.types.steering import TARGET_KEY, Unit

MAX_TARGETS = 20
MAX_STRENGTHS = 32
AUTO_STRENGTHS = 6
"""Strengths that `auto` tries: three of either sign."""
MAX_PROMPTS = 1000
MAX_PROMPT_CHARACTERS = 100_000
MAX_PATTERN = 1000
MAX_SETS = 40
MAX_DIRECTIONS = 50_000
"""Targets times strengths times random directions: what is found of each is part of the result."""
MAX_ANSWER_TOKENS = 50_000
"""Targets times `answers` times `max_new_tokens`: the answers are part of the result."""

Verdict = Literal[
    "steers", "weak", "steers the other way", "indistinguishable from random", "too few prompts"
]
"""`steers`: beyond the 95th percentile of the random directions, both of equal norm and of equal cost, at a
false-discovery rate of 5% over all targets and strengths. `weak`: beyond the percentile, but not at that
rate. `steers the other way`: below the 5th percentile, and below 0, at the same rate, corrected apart: up
takes the behaviour away, or down brings it. `too few prompts`: none could be told."""

_FLAG_I = re.compile(r"\(\?[a-zA-Z]*i[a-zA-Z]*[-:)]")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARACTERS)]


class Prompt(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the model is asked: `prompt`, or the turns of a conversation up to the answer in `messages`.

    A `prompt` takes the form of the audited data set: a user's turn, or plain text.
    """

    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=1024)] | None = None
    completion: Text | None = None
    """For the detector `log-probability` alone: the answer whose probability is measured."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("`prompt` or `messages` is expected")
        if deeper_than(MAX_QUERY_DEPTH, self.messages):
            raise ValueError(f"`messages` are nested deeper than {MAX_QUERY_DEPTH} levels")


# ------------------------------------------------------------------ detectors


class PatternDetector(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="pattern"
):
    """The behaviour is there where the pattern is found in the answer (Python's syntax, in bounded time)."""

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATTERN)]
    ignore_case: bool = True
    at_least: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Matches that do not overlap which it takes."""
    absent: bool = False
    """The behaviour is there where the pattern is *not* found that often."""

    def __post_init__(self) -> None:
        # Wide sets take milliseconds each to compile, and seconds under the flag.
        if self.pattern.count("[") > MAX_SETS:
            raise ValueError(f"`pattern` has more than {MAX_SETS} sets of characters (`[`)")
        if _FLAG_I.search(self.pattern):
            raise ValueError("`pattern`: `ignore_case` takes the place of the flag `i`")
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise ValueError(f"`pattern` is no regular expression: {error}") from error


class NamedDetector(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="named"
):
    """One of those that are built in; the first five are the paper's (section 4.4)."""

    name: Literal[
        "yes_no", "code_block", "asks_for_input", "bulleted_list", "numbered_list", "refusal", "json"
    ]


class LengthDetector(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="length"
):
    """The behaviour is there where the answer has as many words as this."""

    at_least: Annotated[int, msgspec.Meta(ge=0)] = 0
    at_most: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError("`at_most` is less than `at_least`: no answer has such a length")


class JudgeDetector(
    msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="judge"
):
    """An OpenAI-compatible endpoint, which the worker's operator has set, answers yes or no.

    Prompts and answers leave the worker for it.
    """

    question: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    """What is asked of every answer, such as `Does the answer recommend a product?`"""


class LogProbabilityDetector(
    msgspec.Struct,
    kw_only=True,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="log-probability",
):
    """No answer is written: measured is the mean log-probability per token of given completions, in nats.

    Of prompts taken from documents, the completions are the documents' own.
    """


Detector = PatternDetector | NamedDetector | LengthDetector | JudgeDetector | LogProbabilityDetector

# ------------------------------------------------------------------- request


class EvaluationTarget(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An atom or a behaviour, how it is told in an answer, and the prompts that invite it."""

    target: str
    """`7`, `atom:7` or `behaviour:3`."""
    detector: Detector | None = None
    """None: only what steering costs is measured, and the largest strength within the budget found."""
    inviting: Annotated[list[Prompt], msgspec.Meta(min_length=2, max_length=MAX_PROMPTS)] | None = None
    """None: those of the target's own documents, strongest first."""
    name: Name | None = None

    def __post_init__(self) -> None:
        if TARGET_KEY.fullmatch(self.target) is None:
            raise ValueError(
                f"`target`: {self.target[:50]!r} names no atom and no behaviour: "
                "write 7, atom:7 or behaviour:3"
            )
        if isinstance(self.detector, LogProbabilityDetector):
            check_completions("inviting", self.inviting)


def check_completions(field: str, prompts: list[Prompt] | None) -> None:
    """Raise `ValueError` unless each prompt that is given has the completion that is to be measured."""
    for place, prompt in enumerate(prompts or []):
        if not prompt.completion:
            raise ValueError(
                f"`{field}[{place}]` has no `completion`, which the detector `log-probability` measures"
            )


class Sampling(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How answers are written: greedily at temperature 0, or else drawn."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=2048)] = 48


class EvaluationQuery(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is evaluated. Raises `msgspec.ValidationError` for what cannot be."""

    targets: Annotated[list[EvaluationTarget], msgspec.Meta(min_length=1, max_length=MAX_TARGETS)]
    strengths: (
        Annotated[list[float], msgspec.Meta(min_length=1, max_length=MAX_STRENGTHS)] | Literal["auto"]
    ) = "auto"
    """`auto`: of either sign, the largest within the budget, its half and its quarter."""
    unit: Unit = "norm"
    power: VectorPower | None = None
    """Power of (lambda + damping) in the unprojection; by default the audit's."""
    kl_budget: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.5
    """Nats per token by which the steered model may differ from the unsteered, on neutral documents."""
    perplexity_budget: Annotated[float, msgspec.Meta(gt=1, le=1000)] | None = None
    """Times the unsteered perplexity of neutral documents that the steered one may be."""
    neutral: Annotated[list[Prompt], msgspec.Meta(min_length=2, max_length=MAX_PROMPTS)] | None = None
    """None: prompts of documents on which no target is active."""
    prompts: Annotated[int, msgspec.Meta(ge=4, le=MAX_PROMPTS)] = 24
    """Inviting prompts of each target, and neutral ones, to take from documents."""
    neutral_documents: Annotated[int, msgspec.Meta(ge=2, le=MAX_PROMPTS)] = 16
    """Documents on which cost is measured; no target is active on them."""
    random_directions: Annotated[int, msgspec.Meta(ge=20, le=1000)] = 20
    random_at: Literal["points", "chosen"] = "points"
    """Where random directions are run: beside every strength, or beside the chosen ones alone."""
    sampling: Sampling = Sampling()
    answers: Annotated[int, msgspec.Meta(ge=0, le=20)] = 3
    """Prompts of each kind whose answers are kept, side by side."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0

    def __post_init__(self) -> None:
        if isinstance(self.strengths, list):
            if not all(math.isfinite(item) and item != 0 for item in self.strengths):
                raise ValueError("`strengths`: finite numbers other than 0 are expected")
            if len(set(self.strengths)) != len(self.strengths):
                raise ValueError("`strengths`: one is given twice")
        keys = [item.target.removeprefix("atom:") for item in self.targets]
        if len(set(keys)) != len(keys):
            raise ValueError("`targets`: one is given twice")
        if any(isinstance(item.detector, LogProbabilityDetector) for item in self.targets):
            check_completions("neutral", self.neutral)
        strengths = AUTO_STRENGTHS if self.strengths == "auto" else len(self.strengths)
        if len(keys) * strengths * self.random_directions > MAX_DIRECTIONS:
            raise ValueError(
                f"{len(keys)} targets at {strengths} strengths beside {self.random_directions} random "
                f"directions each are more than {MAX_DIRECTIONS} in all: ask for fewer"
            )
        if len(keys) * self.answers * self.sampling.max_new_tokens > MAX_ANSWER_TOKENS:
            raise ValueError(
                f"{self.answers} answers of {self.sampling.max_new_tokens} tokens for {len(keys)} targets "
                f"are more than {MAX_ANSWER_TOKENS} tokens to keep: lower `answers` or `max_new_tokens`"
            )


# -------------------------------------------------------------------- result


class Measure(msgspec.Struct, kw_only=True, frozen=True):
    """What the detector says of a set of answers: a share of them, or a mean log-probability."""

    value: float
    low: float
    """Ends of the 95% interval: Wilson's of a share, the normal one of a mean."""
    high: float
    n: int
    hits: int | None
    """Answers with the behaviour; None of a log-probability."""


class Cost(msgspec.Struct, kw_only=True, frozen=True):
    """What steering does to neutral documents."""

    kl: float
    """Mean Kullback-Leibler divergence of the steered from the unsteered model, nats per target token."""
    perplexity: float
    """Of the documents' own target tokens, under the steered model."""


class CostPoint(msgspec.Struct, kw_only=True, frozen=True):
    strength: float
    cost: Cost


class RandomDirections(msgspec.Struct, kw_only=True, frozen=True):
    """Random directions in place of the target's, each tensor of them with the norm of the target's."""

    match: Literal["norm", "kl"]
    """What they share with the target's step: its norm, or its cost on neutral documents."""
    shifts: list[float]
    """Of each, `overall` of the reported half less the baseline's, signed as the target's strength is:
    positive is in the direction that was asked for."""
    costs: list[float]
    """Of each, the mean KL."""
    percentile_95: float
    """95th percentile of `shifts`."""
    p_value: float
    """That a random direction would shift as far; one-sided, from a t distribution whose spread is no less
    than that of counting answers."""


class EvaluationPoint(msgspec.Struct, kw_only=True, frozen=True):
    """A target at one strength, on the half of the prompts that is reported."""

    strength: float
    cost: Cost
    inviting: Measure
    neutral: Measure
    overall: Measure
    """Of inviting and neutral prompts together; of log-probabilities the inviting prompts' alone, since the
    completions of the neutral ones do not hold the behaviour."""
    shift: float
    """`overall` less the baseline's, signed as the strength is: positive is in the direction asked for."""
    selection_shift: float
    """The same on the half on which the strength was chosen."""
    within_budget: bool
    equal_norm: RandomDirections | None
    equal_kl: RandomDirections | None
    unrelated: Measure | None
    """`overall` of the unrelated atom, at the same strength."""
    q_value: float | None
    """The larger of the two p-values, corrected over all targets and strengths (Benjamini-Hochberg)."""
    verdict: Verdict | None
    """None where no random directions were run."""


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """One prompt, answered unsteered and at the chosen strengths."""

    kind: Literal["inviting", "neutral"]
    prompt: str
    """Its end, where it is long."""
    base: str
    up: str | None
    down: str | None


class Chosen(msgspec.Struct, kw_only=True, frozen=True):
    """The strength of one sign: that of the largest shift on the selection half, within the budget.

    Where none shifts in the direction asked for, the one that shifts most the other way.
    """

    strength: float
    shift: float
    """On the half that is reported."""
    kl: float
    verdict: Verdict | None


class TargetEvaluation(msgspec.Struct, kw_only=True, frozen=True):
    """What was found of one target."""

    target: str
    name: str | None
    verdict: Verdict | None
    """The better of the two directions'; None without a detector, and where no strength is within the
    budget."""
    up: Chosen | None
    """None where no strength of this sign is within the budget."""
    down: Chosen | None
    auto_up: float | None
    """Largest strength within the budget, up and down; None where even the least that was tried is not."""
    auto_down: float | None
    gain: float
    """Mean log-probability per token of the target's own documents, up to 8, at the least strength up that
    was tried, less that at the same strength down, in nats: above 0, up is more of the behaviour."""
    curve: list[CostPoint]
    """What steering costs, by rising strength: every strength that was measured."""
    baseline_inviting: Measure | None
    baseline_neutral: Measure | None
    baseline: Measure | None
    """`overall` of the unsteered model, on the half that is reported, as the two before it."""
    points: list[EvaluationPoint]
    """By rising strength; empty without a detector."""
    unrelated: int | None
    """Index of the unrelated atom."""
    answers: list[Answer]
    others: dict[str, float]
    """Unlearning check: at the chosen strength down, how the mean log-probability per token of every other
    behaviour changed, by its key `behaviour:3`, in nats: of its 8 strongest documents on which the target has
    no strength. One that has none of these is left out, as is the behaviour of an atom."""

    @property
    def turns_up(self) -> bool:
        """Whether up is more of the target's own documents, by `gain`."""
        return self.gain > 0

    def unrelated_shift(self, point: EvaluationPoint) -> float | None:
        """`shift` of the unrelated atom in place of the target's; None where none was run."""
        if point.unrelated is None or self.baseline is None:
            return None
        return math.copysign(1.0, point.strength) * (point.unrelated.value - self.baseline.value)


class EvaluationResult(msgspec.Struct, kw_only=True, frozen=True):
    """What an evaluation found."""

    targets: list[TargetEvaluation]
    baseline_cost: Cost
    """`kl` 0, and the unsteered perplexity of the neutral documents."""
    neutral_documents: int
    n_neutral_tokens: int
    seconds: float
    """Time that it took on the worker."""
    warnings: list[str] = []
