"""What an audit ends with on the command line: its behaviours, then its atoms."""

from __future__ import annotations

from typing import Any

import msgspec

from atomscope.bundle import AtomList, BehaviourList, Bundle
from atomscope.client import Audit


def findings(audited: Audit | Bundle, limit: int) -> tuple[dict[str, Any], str]:
    """Both levels as JSON holds them, all but the documents of behaviours; and the first of each as text."""
    behaviours: BehaviourList[Any] = audited.behaviours
    atoms: AtomList[Any] = audited.atoms
    found = {
        "behaviours": [msgspec.structs.replace(item.behaviour, documents=[]) for item in behaviours],
        "atoms": [item.atom for item in atoms],
    }
    return found, f"{behaviours.table(limit)}\n\n{atoms.table(limit)}"
