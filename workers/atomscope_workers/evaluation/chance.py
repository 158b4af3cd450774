"""Random directions beside a target's: what chance does, at the same norm and at the same cost.

The same directions serve every strength, and at equal norm both signs: a random direction and its opposite
are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from atomscope.errors import InvalidInput
from atomscope.types.evaluation import RandomDirections
from atomscope_workers.evaluation import statistics
from atomscope_workers.evaluation.cost import Costs, NeutralCost
from atomscope_workers.evaluation.curve import BEYOND, Curve
from atomscope_workers.evaluation.directions import matched_scale, random_step
from atomscope_workers.evaluation.probe import Probe
from atomscope_workers.evaluation.prompts import Asked
from atomscope_workers.steered import StepOf

MATCH_DOCUMENTS = 8
"""Neutral documents on which costs are made equal; reported is the cost on all."""


@dataclass
class Chance:
    """Random directions of one target."""

    purpose: str
    """What seeds them, with `seed`: which target they stand beside."""
    seed: int
    count: int
    curve: Curve
    probe: Probe
    asked: Sequence[Asked]
    """The prompts of which the target's `overall` is."""
    baseline: float
    """Mean score of these prompts, unsteered."""
    passed: Callable[[], None] = lambda: None
    _values: dict[tuple[int, float], float] = field(default_factory=dict[tuple[int, float], float])
    _costs: dict[tuple[int, float], Costs] = field(default_factory=dict[tuple[int, float], Costs])

    def equal_norm(self, strength: float, shift: float, error: float) -> RandomDirections:
        """Beside a strength of the target: each tensor of a random step has the norm of the target's step.

        `shift` is the target's, signed as the strength, and `error` its least spread.
        """
        norms = abs(strength) * self.curve.dial.unit
        return self._compared("norm", [norms] * self.count, strength, shift, error)

    def equal_kl(self, strength: float, shift: float, error: float) -> RandomDirections:
        """The same with every random step scaled until it costs what the target's does."""
        scales = [self._matched(index, strength) for index in range(self.count)]
        return self._compared("kl", scales, strength, shift, error)

    def _compared(
        self, match: str, scales: Sequence[float], strength: float, shift: float, error: float
    ) -> RandomDirections:
        sign = 1.0 if strength > 0 else -1.0
        shifts = [sign * (self._value(index, scale) - self.baseline) for index, scale in enumerate(scales)]
        return RandomDirections(
            match="norm" if match == "norm" else "kl",
            shifts=shifts,
            costs=[self._cost(index, scale).cost.kl for index, scale in enumerate(scales)],
            percentile_95=statistics.percentile_95(shifts),
            p_value=statistics.p_value(shift, shifts, error),
        )

    def _matched(self, index: int, strength: float) -> float:
        norms = abs(strength) * self.curve.dial.unit
        neutral: NeutralCost = self.curve.neutral
        first = min(MATCH_DOCUMENTS, neutral.n_documents)

        def cost(scale: float) -> float:
            try:
                found = neutral.of(self._step(index, scale), first)
            except InvalidInput as error:
                if error.code not in BEYOND:
                    raise
                return math.inf
            self.passed()
            if first == neutral.n_documents:
                self._costs[index, scale] = found
            return found.mean_kl(first)

        start = (norms, self._cost(index, norms).mean_kl(first))
        return matched_scale(cost, self.curve.at(strength).mean_kl(first), start)

    def _value(self, index: int, scale: float) -> float:
        key = (index, scale)
        if key not in self._values:
            self._values[key] = float(self.probe.of(self.asked, self._step(index, scale)).scores.mean())
        return self._values[key]

    def _cost(self, index: int, scale: float) -> Costs:
        key = (index, scale)
        if key not in self._costs:
            self._costs[key] = self.curve.neutral.of(self._step(index, scale))
            self.passed()
        return self._costs[key]

    def _step(self, index: int, scale: float) -> StepOf:
        return random_step(self.curve.dial.lengths, self.seed, f"{self.purpose}/{index}", scale)
