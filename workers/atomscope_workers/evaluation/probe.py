"""What a detector says of prompts, with the model a step away from where it stood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atomscope.types.evaluation import Measure
from atomscope_workers.evaluation import statistics
from atomscope_workers.evaluation.cost import mean_log_probabilities
from atomscope_workers.evaluation.detectors import Detect
from atomscope_workers.evaluation.generation import Answering
from atomscope_workers.evaluation.prompts import Asked
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.steered import StepOf


@dataclass(frozen=True)
class Said:
    """What was found of n prompts."""

    scores: NDArray[np.float64]
    """(n,): 1 where the behaviour is in the answer, else 0; or a mean log-probability."""
    answers: list[str]
    """Empty where none was written."""


@dataclass(frozen=True)
class Probe:
    """A detector on a model."""

    subject: Subject
    answering: Answering
    detect: Detect | None
    """None: the log-probability of completions."""
    unsteered: dict[str, str]
    """Answers of the unsteered model by prompt key, which several targets ask for."""
    passed: Callable[[], None] = field(default=lambda: None)
    """Called after every pass."""

    @property
    def counts(self) -> bool:
        """Whether answers are counted; else log-probabilities are averaged."""
        return self.detect is not None

    def of(self, asked: Sequence[Asked], step: StepOf | None) -> Said:
        """Ask the prompts; raises `InvalidInput` as detector and model do."""
        if self.detect is None:
            completions = [item.completion for item in asked if item.completion is not None]
            said = Said(mean_log_probabilities(self.subject, completions, step), [])
        else:
            answers = self._answers(asked, step)
            found = self.detect([item.text for item in asked], answers)
            said = Said(np.array(found, dtype=np.float64), answers)
        self.passed()
        return said

    def overall(self, inviting: NDArray[np.float64], neutral: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores that are taken together.

        Of log-probabilities the inviting prompts' alone: the completions of the neutral ones do not hold the
        behaviour.
        """
        return np.concatenate([inviting, neutral]) if self.counts else inviting

    def measure(self, scores: NDArray[np.float64]) -> Measure:
        return statistics.share(scores > 0) if self.counts else statistics.mean(scores)

    def error(self, scores: NDArray[np.float64], baseline: NDArray[np.float64]) -> float:
        """How well the mean of scores is known at all, beside the baseline's of the same prompts."""
        if self.counts:
            return statistics.share_error(int(scores.sum()), int(baseline.sum()), len(scores))
        return statistics.mean_error(scores - baseline)

    def _answers(self, asked: Sequence[Asked], step: StepOf | None) -> list[str]:
        if step is not None:
            with self.subject.moved(step):
                return self.answering(asked)
        missing = [item for item in asked if item.key not in self.unsteered]
        for item, answer in zip(missing, self.answering(missing), strict=True):
            self.unsteered[item.key] = answer
        return [self.unsteered[item.key] for item in asked]
