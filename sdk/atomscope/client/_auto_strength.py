"""`auto` in the place of a strength: the largest whose cost on neutral documents is within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from atomscope.bundle.atom_list import AtomAttributes
from atomscope.bundle.behaviour_list import BehaviourAttributes
from atomscope.bundle.strengths import Steerable, Strengths, target_of
from atomscope.client._evaluations import evaluate, make_evaluation
from atomscope.client._service import Service
from atomscope.errors import SteeringError, UsageError
from atomscope.steering import Target, real
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.spec import VectorPower
from atomscope.types.steering import Unit

Auto = Literal["auto", "-auto"]
"""As far up, or down, as the budget allows."""
BUDGETS = ("kl_budget", "perplexity_budget")
"""Fields of the evaluation that say what a strength may cost."""


class Search(NamedTuple):
    """How strengths of `auto` are found; None is the evaluation's own choice."""

    kl_budget: float | None = None
    """Nats per token on neutral documents."""
    perplexity_budget: float | None = None
    """Times their perplexity."""
    timeout: float | None = None
    """Seconds to wait."""


GivenStrengths = (
    Strengths
    | Mapping[Steerable, float | Auto]
    | Mapping[AtomAttributes, float | Auto]
    | Mapping[BehaviourAttributes, float | Auto]
    | Mapping[int, float | Auto]
    | Mapping[str, float | Auto]
)


def autos_of(strengths: GivenStrengths, audit_id: str) -> dict[Target, Auto]:
    """The targets whose strength is to be found.

    Raises `SteeringError` as `strengths_by_target` does, and for a text that is not `auto` or `-auto`.
    """
    found: dict[Target, Auto] = {}
    named: set[Target] = set()
    for key, strength in strengths.items():
        target = target_of(key, audit_id)
        if target in named:
            raise SteeringError(f"{target} was named twice")
        named.add(target)
        if not isinstance(strength, str):
            real(target, strength)
        elif strength not in get_args(Auto):
            told = "a number, 'auto' or '-auto' is expected"
            raise SteeringError(f"the strength of {target} is {strength!r}: {told}")
        else:
            found[target] = strength
    return found


def largest_strengths(
    autos: Mapping[str, Auto], found: EvaluationResult, query: EvaluationQuery
) -> dict[str, float]:
    """The strengths that the evaluation of a query of these targets, in this order, found.

    Raises `SteeringError` where even the least strength that was tried costs too much.
    """
    numbers: dict[str, float] = {}
    for (key, strength), target in zip(autos.items(), found.targets, strict=True):
        end = target.auto_up if strength == "auto" else target.auto_down
        if end is None:
            times = query.perplexity_budget
            told = "" if times is None else f" and {times:g} times the perplexity"
            raise SteeringError(
                f"{key}={strength}: no strength costs as little as {query.kl_budget:g} nats per token{told}"
            )
        numbers[key] = end
    return numbers


async def settled(
    service: Service,
    audit_id: str,
    strengths: GivenStrengths,
    *,
    unit: Unit,
    power: VectorPower | None,
    search: Search,
) -> dict[Steerable, float]:
    """The strengths with numbers in the place of `auto`, each found by itself, by an evaluation.

    Raises `SteeringError`, `UsageError` for a budget or a time without an `auto`, and as evaluations do.
    """
    autos: dict[str, Auto] = {key.key: strength for key, strength in autos_of(strengths, audit_id).items()}
    if not autos:
        for name, value in search._asdict().items():
            if value is not None:
                raise UsageError(f"{name} is for a strength of 'auto'")
        return {key: strength for key, strength in strengths.items() if not isinstance(strength, str)}
    given = {name: value for name in BUDGETS if (value := getattr(search, name)) is not None}
    query = make_evaluation(list(autos), unit=unit, power=power, **given)
    found = largest_strengths(autos, await evaluate(service, audit_id, query, search.timeout, None), query)
    return {
        key: found[target_of(key, audit_id).key] if isinstance(strength, str) else strength
        for key, strength in strengths.items()
    }
