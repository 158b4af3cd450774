"""What an audit keeps of its gradients, and what is not there without them."""

from __future__ import annotations

from typing import Any

from atomscope.errors import InvalidInput
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditConfig

WITHOUT = ("refits", "attribution with `exact`", "later audits that take its shards")
"""What an audit of `gradients: none` does without."""


def keeps_gradients(config: AuditConfig) -> bool:
    """Whether the gradients are still there once the audit has ended."""
    return config.gradients != "none"


def require_kept(config: AuditConfig, what: str) -> None:
    """Raise `InvalidInput` (`gradients_not_kept`) unless an audit kept its gradients, which `what` reads."""
    if not keeps_gradients(config):
        raise InvalidInput(
            "gradients_not_kept",
            f"{what} reads the documents' gradients, and this audit was made with `gradients: none`: it kept "
            "none. Run a whole audit that keeps them",
        )


def gradient_facts(config: AuditConfig, plan: Plan) -> dict[str, Any]:
    """What the report says of them."""
    if keeps_gradients(config):
        return {"kept": plan.gradient_dtype, "disables": []}
    return {"kept": "none", "disables": list(WITHOUT)}
