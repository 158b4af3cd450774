"""What a worker says, cut to size: workers read untrusted files, so their words are not trusted either."""

from __future__ import annotations

from typing import Any

import msgspec

from atomscope.text import counted
from atomscope.types.work import FAN_OUT, PLANNED, Stage, UnitFailed, UnitHeartbeat, UnitSucceeded

NAME = 200
DETAIL = 2_000
MAX_ERRORS = 100
MAX_WARNINGS = 50
MAX_EXTRACTIONS = 100
MAX_COUNT = 2**31 - 1
MAX_BYTES = 2**53
"""The largest whole number up to which every JSON reader is exact."""
MAX_FACTS = 20
MAX_SHARDS = 100_000
"""Units of one stage: more than any plan needs, few enough to be rows made in one transaction."""
PROGRESS_UNITS = frozenset({"documents", "shards", "steps"})
ERROR_FIELDS = ("file", "line", "field", "message", "code")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a successful unit told of its audit; None where it told nothing."""

    shards: int | None = None
    documents: int | None = None
    atoms: int | None = None
    extractions: tuple[str, ...] | None = None
    """Of `validate`: whose stored shards the plan has; an empty one for the audit's own."""
    warnings: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    """Of `validate`: counts and bytes of what is planned."""
    units: dict[Stage, int] | None = None
    """Of `validate`: units of `PLANNED` stages."""


def text(value: object, limit: int) -> str:
    """`value` as at most `limit` characters, without NUL (PostgreSQL stores none) or lone surrogates."""
    shown = value if isinstance(value, str) else repr(value)
    shown = shown.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    return shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def pair(done: int, total: int) -> tuple[int, int]:
    """Counts with 0 <= done <= total."""
    total = min(max(total, 0), MAX_COUNT)
    return min(max(done, 0), total), total


def counts(report: UnitHeartbeat) -> tuple[int, int, str]:
    """Done, total and unit of a heartbeat, with 0 <= done <= total."""
    done, total = pair(report.done, report.total)
    return done, total, report.unit if report.unit in PROGRESS_UNITS else "steps"


def failure(code: str, detail: str, errors: list[dict[str, Any]]) -> dict[str, Any]:
    """`code`, `detail` and `errors` of a failure."""
    return {
        "code": text(code, 64),
        "detail": text(detail, DETAIL),
        "errors": [_problem(problem) for problem in errors[:MAX_ERRORS]],
    }


def error(report: UnitFailed) -> dict[str, Any]:
    """The same of a unit."""
    code = "nothing_to_audit" if report.nothing_to_audit else report.code
    return failure(code, report.detail, report.errors)


def facts(report: UnitSucceeded) -> Facts | str:  # noqa: PLR0911  (one return a fault)
    """What a success tells, or what is wrong with it."""
    shards, documents = report.shards, report.documents
    if report.stage == "validate":
        if shards is None or documents is None:
            return "validate told no number of shards or documents"
        if not 1 <= shards <= MAX_SHARDS:
            return f"between 1 and {MAX_SHARDS} shards are expected, not {shards}"
        if not shards <= documents <= MAX_COUNT:
            return f"{counted(documents, 'document')} cannot fill {counted(shards, 'shard')}"
    elif shards is not None or documents is not None:
        return f"{report.stage} may not tell a number of shards or documents"
    warnings = report.summary.get("warnings", [])
    if not isinstance(warnings, list):
        return "its warnings are not a list"
    atoms = report.summary.get("n_atoms")
    if atoms is not None and (type(atoms) is not int or not 0 <= atoms <= MAX_COUNT):
        return "its number of atoms is not a count"
    used = report.summary.get("extractions") if report.stage == "validate" else None
    if used is not None and not _are_ids(used):
        return "the extractions that it uses are not a list of ids"
    plan = report.summary.get("plan") if report.stage == "validate" else None
    if plan is not None and not _are_facts(plan):
        return "the facts of its plan are not counts"
    units = report.summary.get("units") if report.stage == "validate" else None
    if units is not None and not _are_units(units, shards or 0):
        return "the units of its stages are not counts up to that of the shards"
    told = tuple(text(warning, DETAIL) for warning in warnings[:MAX_WARNINGS])
    return Facts(
        shards=shards,
        documents=documents,
        atoms=atoms,
        extractions=None if used is None else tuple(used),
        warnings=told,
        plan=plan,
        units=units,
    )


def _are_units(value: object, shards: int) -> bool:
    """Whether it is counts of stages whose units are planned."""
    if not isinstance(value, dict):
        return False
    items: list[tuple[object, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
    return all(
        stage in PLANNED and type(count) is int and 0 <= count <= (shards if stage in FAN_OUT else 1)
        for stage, count in items
    )


def _are_facts(value: object, *, nested: bool = True) -> bool:
    """Whether it is a few counts by name, some of them by name again."""
    if not isinstance(value, dict) or len(value) > MAX_FACTS:  # pyright: ignore[reportUnknownArgumentType]
        return False
    items: list[tuple[object, object]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
    return all(
        isinstance(name, str)
        and name.isidentifier()
        and len(name) <= NAME
        and ((type(item) is int and 0 <= item <= MAX_BYTES) or (nested and _are_facts(item, nested=False)))
        for name, item in items
    )


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_EXTRACTIONS  # pyright: ignore[reportUnknownArgumentType]
        and all(isinstance(item, str) for item in value)  # pyright: ignore[reportUnknownVariableType]
    )


def _problem(problem: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for field in ERROR_FIELDS:
        value = problem.get(field)
        if value is not None:
            kept[field] = value if type(value) is int and abs(value) <= MAX_COUNT else text(value, DETAIL)
    return kept
