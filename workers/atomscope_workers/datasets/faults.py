"""What becomes of malformed rows: a failure that names them, or a list of what was skipped."""

from __future__ import annotations

from atomscope.errors import InputProblem, InvalidInput
from atomscope.text import counted
from atomscope.types.atoms import DroppedDocument
from atomscope.types.spec import OnBadRow
from atomscope_workers.datasets.rows import BadRow

MAX_PROBLEMS = 100
"""Problems that are collected before reading stops."""


class RowFaults:
    """Takes malformed rows as they are met.

    Under `fail` they are collected, so that one failure tells of up to `MAX_PROBLEMS`; under `skip` they are
    listed as dropped.
    """

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self._on_bad_row = on_bad_row
        self._problems: list[InputProblem] = []
        self.dropped: list[DroppedDocument] = []
        """Rows skipped so far, with reason `malformed`."""

    def add(self, row: BadRow) -> None:
        """Raises `InvalidInput` (`bad_row`) at the `MAX_PROBLEMS`-th problem under `fail`."""
        if self._on_bad_row == "skip":
            detail = "; ".join(
                f"{problem.field}: {problem.message}" if problem.field else problem.message
                for problem in row.problems
            )
            self.dropped.append(
                DroppedDocument(document=row.document, line=row.line, reason="malformed", detail=detail)
            )
            return
        self._problems.extend(row.problems)
        if len(self._problems) >= MAX_PROBLEMS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise `InvalidInput` (`bad_row`) if a malformed row was met under `fail`."""
        if not self._problems:
            return
        first = self._problems[0]
        many = len(self._problems) >= MAX_PROBLEMS
        count = (
            f"the first {MAX_PROBLEMS} of its problems" if many else counted(len(self._problems), "problem")
        )
        where = f"line {first.line}" + (f", `{first.field}`" if first.field else "")
        raise InvalidInput(
            "bad_row",
            f"{first.file}: {count}, first {where}: {first.message}",
            self._problems[:MAX_PROBLEMS],
        )
