"""The JSON Schema (draft 2020-12) of each JSON file of a bundle, from the types that read it."""

from __future__ import annotations

from typing import Any

import msgspec

from atomscope.bundle import layout
from atomscope.bundle._json import encode
from atomscope.types.atoms import Atom, AuditReport, Behaviour, DroppedDocument
from atomscope.types.bundle import Manifest, Plan
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.labels import Labels
from atomscope.types.spec import AuditSpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

TYPES: dict[str, Any] = {
    layout.MANIFEST: Manifest,
    layout.SPEC: AuditSpec,
    layout.PLAN: Plan,
    layout.REPORT: AuditReport,
    layout.ATOMS: list[Atom],
    layout.BEHAVIOURS: list[Behaviour],
    layout.HIERARCHY: Hierarchy,
    layout.LABELS: Labels,
    layout.DROPPED: list[DroppedDocument],
}
"""Bundle path of a JSON file -> what it holds."""


def json_schemas() -> dict[str, bytes]:
    """Bundle path of a schema -> its content, one for each file of `TYPES`."""
    return {
        layout.schema(path): encode({"$schema": _DIALECT, **msgspec.json.schema(kind)})
        for path, kind in TYPES.items()
    }
