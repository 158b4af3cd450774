"""What a dial costs at every strength that was measured, and how far the budget lets it be turned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from atomscope.errors import InvalidInput
from atomscope.types.evaluation import Cost, CostPoint
from atomscope_workers.evaluation.cost import Costs, NeutralCost
from atomscope_workers.evaluation.directions import Dial
from atomscope_workers.evaluation.strength import largest_strength

BEYOND = ("not_finite", "strength_too_large")
"""Codes of steps after which the model predicts nothing."""


@dataclass(frozen=True)
class Budget:
    """What a strength may cost."""

    kl: float
    """Nats per target token."""
    perplexity: float | None
    """The largest perplexity of the neutral documents; None for any."""

    def holds(self, cost: Cost) -> bool:
        return cost.kl <= self.kl and (self.perplexity is None or cost.perplexity <= self.perplexity)


@dataclass(frozen=True)
class Curve:
    """Costs of one dial, each strength measured once."""

    dial: Dial
    neutral: NeutralCost
    budget: Budget
    passed: Callable[[], None] = lambda: None
    """Called after every pass."""
    known: dict[float, Costs] = field(default_factory=dict[float, Costs])
    """By the query's strengths."""

    def at(self, strength: float) -> Costs:
        """Raises `InvalidInput` as `NeutralCost.of` does."""
        if strength not in self.known:
            self.known[strength] = self.neutral.of(self.dial.step(strength * self.dial.unit))
            self.passed()
        return self.known[strength]

    def within(self, strength: float) -> bool:
        """Whether a strength is within the budget; one after which the model predicts nothing is not."""
        try:
            return self.budget.holds(self.at(strength).cost)
        except InvalidInput as error:
            if error.code not in BEYOND:
                raise
            return False

    def largest(self, sign: int) -> float | None:
        """The largest strength of a sign within the budget, 0.09 of it at most below; None without one."""
        found = largest_strength(lambda norms: self.within(sign * norms / self.dial.unit))
        return None if found is None else sign * found / self.dial.unit

    def points(self) -> list[CostPoint]:
        """All that was measured, by rising strength."""
        return [CostPoint(strength=item, cost=self.known[item].cost) for item in sorted(self.known)]
