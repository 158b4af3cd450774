"""An audit's spec: where its inputs lie and what they were when it was made."""

from __future__ import annotations

import importlib.metadata

import msgspec
from sqlalchemy.orm import Session

from atomscope.bundle.layout import SPEC
from atomscope.errors import AtomscopeError
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef, ParentRef
from atomscope_service.db.models import AdapterRow, AuditRow, DatasetRow, ModelRow


class InputMissing(AtomscopeError):  # noqa: N818
    """A model, adapter or data set of the audit is gone or was never ready."""


def spec_key(work_prefix: str) -> str:
    return work_prefix + SPEC


def audit_spec(session: Session, row: AuditRow) -> AuditSpec:
    """The spec of an audit, from the rows it names; raises `InputMissing`."""
    base = _base(session, row)
    adapter = session.get(AdapterRow, row.adapter_id)
    dataset = session.get(DatasetRow, row.dataset_id)
    if adapter is None or adapter.project_id != row.project_id:
        raise InputMissing(f"adapter {row.adapter_id} is not there")
    if dataset is None or dataset.project_id != row.project_id:
        raise InputMissing(f"data set {row.dataset_id} is not there")
    return AuditSpec(
        audit_id=row.id,
        project_id=row.project_id,
        base_model=base,
        adapter=InputRef(
            id=adapter.id,
            location=adapter.prefix,
            sha256=adapter.sha256,
            size=adapter.size,
            name=adapter.name,
        ),
        dataset=InputRef(
            id=dataset.id, location=dataset.key, sha256=dataset.sha256, size=dataset.size, name=dataset.name
        ),
        config=msgspec.convert(row.config, AuditConfig),
        versions={"atomscope": importlib.metadata.version("atomscope")},
    )


def refit_spec(session: Session, row: AuditRow, parent: ParentRef, of_parent: AuditSpec) -> AuditSpec:
    """The spec of a refit: the parent's inputs, the adapter as its bundle keeps it; raises `InputMissing`."""
    return msgspec.structs.replace(
        of_parent,
        audit_id=row.id,
        project_id=row.project_id,
        base_model=_base(session, row),
        adapter=msgspec.structs.replace(of_parent.adapter, location=f"{parent.location}adapter/"),
        config=msgspec.convert(row.config, AuditConfig),
        versions={"atomscope": importlib.metadata.version("atomscope")},
        parent=parent,
        extractions=msgspec.UNSET,
    )


def _base(session: Session, row: AuditRow) -> InputRef:
    model = session.get(ModelRow, row.base_model_id)
    if model is None or model.project_id != row.project_id or model.sha256 is None or model.status != "ready":
        raise InputMissing(f"base model {row.base_model_id} is not there")
    return InputRef(id=model.id, location=model.prefix, sha256=model.sha256, size=model.size, name=model.name)
