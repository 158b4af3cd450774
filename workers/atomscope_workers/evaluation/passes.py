"""Progress of an evaluation, in passes of the model over a set of prompts or documents."""

from __future__ import annotations

from atomscope.types.evaluation import EvaluationQuery
from atomscope_workers.query import AuditFiles

_CURVE = 22
"""Passes of a search for the largest strength, of both signs, as a rule."""
_MATCHING = 3
"""Passes to match one cost, the last included, as a rule."""


class Passes:
    """Counts passes; the total is an estimate, since searches end when they end."""

    def __init__(self, files: AuditFiles, total: int) -> None:
        self._files = files
        self._total = max(total, 1)
        self._done = 0
        files.progress(0, self._total, "passes")

    def done(self) -> None:
        """One pass more; the last of them is told by `end`."""
        self._done = min(self._done + 1, self._total - 1)
        self._files.progress(self._done, self._total, "passes")

    def end(self) -> None:
        self._files.progress(self._total, self._total, "passes")


def estimated(query: EvaluationQuery) -> int:
    """Passes that a query will take, about."""
    strengths = query.strengths if isinstance(query.strengths, list) else [1, 0.5, 0.25, -1, -0.5, -0.25]
    tested = len(strengths) if query.random_at == "points" else min(2, len(strengths))
    norms = len({abs(item) for item in strengths}) if query.random_at == "points" else tested
    plain = _CURVE + len(strengths) + 2
    random = query.random_directions * (2 * norms + (_MATCHING + 1) * tested)
    measured = 4 + 4 * len(strengths) + tested + random + 2
    return sum(plain + (measured if item.detector is not None else 0) for item in query.targets)
