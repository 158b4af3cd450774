"""One evaluation of a finished audit, from its targets to their verdicts."""

from __future__ import annotations

from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope_workers.query import AuditFiles


def evaluate(files: AuditFiles, query: EvaluationQuery) -> EvaluationResult:
    """Steer every target to every strength; measure what that does, what it costs, and what chance does.

    Raises `InvalidInput` for a query that the audit cannot answer.
    """
    raise NotImplementedError
