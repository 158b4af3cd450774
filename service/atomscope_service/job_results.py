"""The results that workers leave of jobs, read and not trusted: workers read hostile files."""

from __future__ import annotations

from typing import Any

import msgspec

from atomscope.store import ObjectNotFound, ObjectStore
from atomscope.types.attribution import AttributionResult
from atomscope.types.evaluation import EvaluationResult
from atomscope.types.jobs import JobKind

MAX_RESULT_BYTES = 8 * 2**20

_RESULTS: dict[JobKind, Any] = {"attribution": AttributionResult, "evaluation": EvaluationResult}


class BadResult(Exception):  # noqa: N818
    """A result that is missing, too large or of no use; says what is wrong with it."""


def read_result(store: ObjectStore, key: str, kind: JobKind) -> Any:  # noqa: ANN401  (of the kind's type)
    """The result under a key. Raises `BadResult`, and `StoreError` when the store fails."""
    try:
        size = store.size(key)
        if size > MAX_RESULT_BYTES:
            raise BadResult(f"a result of {size} bytes, more than {MAX_RESULT_BYTES}")
        return msgspec.json.decode(store.get_bytes(key), type=_RESULTS[kind])
    except ObjectNotFound as error:
        raise BadResult("a result that is not in the store") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadResult(f"a result that cannot be read: {error}") from error
