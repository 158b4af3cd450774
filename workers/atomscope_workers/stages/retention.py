"""What an audit keeps of its gradients, and what is not there without them."""

from __future__ import annotations

from typing import Any

from atomscope.errors import InvalidInput
from atomscope.types.bundle import Plan
from atomscope.types.refits import WHITENING_SETTINGS
from atomscope.types.spec import AuditConfig
from atomscope_workers.stages.sketch_columns import raw_columns

WITHOUT = ("attribution with `exact`", "later audits that take its shards")
"""What an audit that keeps no gradients does without."""


def keeps_gradients(config: AuditConfig) -> bool:
    """Whether the gradients are still there once the audit has ended."""
    return config.gradients not in ("sketch", "none")


def require_kept(config: AuditConfig, what: str, *, sketch: bool = False) -> None:
    """Raise `InvalidInput` (`gradients_not_kept`) unless an audit kept its gradients, which `what` reads.

    With `sketch`, one of them will do.
    """
    if not keeps_gradients(config) and not (sketch and config.gradients == "sketch"):
        raise InvalidInput(
            "gradients_not_kept",
            f"{what} reads the documents' gradients, and this audit was made with `gradients: "
            f"{config.gradients}`: it did not keep them. Run a whole audit that does",
        )


def gradient_facts(config: AuditConfig, plan: Plan) -> dict[str, Any]:
    """What the report says of them."""
    if keeps_gradients(config):
        return {"kept": plan.gradient_dtype, "disables": []}
    if config.gradients == "none":
        return {"kept": "none", "disables": ["refits", *WITHOUT]}
    settings = ", ".join(f"`{name}`" for name in WHITENING_SETTINGS[config.preconditioner])
    refits = [f"refits with another {settings}"]
    if config.preconditioner == "ekfac-full":
        refits.append("exact vectors in refits")
    return {"kept": "sketch", "columns": raw_columns(config), "disables": [*refits, *WITHOUT]}
