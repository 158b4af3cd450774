"""What models, adapters and data sets have in common: an audit may be using them."""

from __future__ import annotations

from atomscope_service.api.problems import ProblemError
from atomscope_service.db.repositories import Repositories


def require_unused(repositories: Repositories, input_id: str) -> None:
    """Raise 409 `resource_in_use` while an audit that has not ended uses this input.

    The caller holds the input's row locked, and creating an audit locks it too: neither can slip past
    the other.
    """
    audit_id = repositories.audits.live_user_of(input_id)
    if audit_id is not None:
        detail = f"Audit {audit_id} has not ended and uses it."
        raise ProblemError(409, "resource_in_use", detail)
