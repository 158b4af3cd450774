"""Who uses what was extracted: rows counted, so that a deletion frees what nobody uses and nothing else.

Every function works in the caller's transaction. Those that remove uses lock the rows of the extractions
first and count afterwards: a use that another transaction has added meanwhile is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from atomscope.bundle.layout import extraction_prefix
from atomscope_service.db.models import AuditRow, DeletionRow, ExtractionUseRow
from atomscope_service.ids import new_id

MOST = 20
"""Extractions of others that an audit looks through."""


def claim(session: Session, audit: AuditRow, base_sha256: str, adapter_sha256: str) -> list[str]:
    """Let an audit use its own extraction and those of equal inputs; ids of the audits that made them."""
    mine = _used(session, audit.project_id, audit.id)
    if mine:
        return mine
    # Locked: what is found here cannot be let go before this transaction has added its own use of it.
    rows = session.scalars(
        select(ExtractionUseRow)
        .where(
            ExtractionUseRow.project_id == audit.project_id,
            ExtractionUseRow.base_sha256 == base_sha256,
            ExtractionUseRow.adapter_sha256 == adapter_sha256,
        )
        .order_by(ExtractionUseRow.id)
        .with_for_update()
    ).all()
    found = [audit.id, *_promising(Counter(row.extraction for row in rows if row.extraction != audit.id))]
    for extraction in found:
        _add(session, audit, extraction, base_sha256, adapter_sha256)
    session.flush()
    return found


def _promising(uses: Counter[str]) -> list[str]:
    """Those of the others that an audit looks through: half that most audits use, half the latest.

    Of a set that grew in many steps the first, which all of its audits use, holds most of the documents.
    """
    latest = sorted(uses, reverse=True)
    first = sorted(latest, key=lambda extraction: -uses[extraction])[: MOST // 2]
    return (first + [extraction for extraction in latest if extraction not in first])[:MOST]


def inherit(session: Session, parent: AuditRow, child: AuditRow) -> int:
    """Let a refit use what its parent uses; how many extractions that is."""
    rows = session.scalars(
        select(ExtractionUseRow)
        .where(ExtractionUseRow.project_id == child.project_id, ExtractionUseRow.audit_id == parent.id)
        .with_for_update()
    ).all()
    for row in rows:
        _add(session, child, row.extraction, row.base_sha256, row.adapter_sha256)
    session.flush()
    return len(rows)


def keep(session: Session, project_id: str, audit_id: str, used: Collection[str]) -> None:
    """Let go of the extractions that an audit does not use after all; "" stands for its own."""
    kept = {extraction or audit_id for extraction in used}
    _let_go(session, project_id, audit_id, set(_used(session, project_id, audit_id)) - kept)


def release(session: Session, project_id: str, audit_id: str) -> None:
    """Let go of every extraction that an audit uses: it is being deleted."""
    _let_go(session, project_id, audit_id, set(_used(session, project_id, audit_id)))


def _used(session: Session, project_id: str, audit_id: str) -> list[str]:
    query = select(ExtractionUseRow.extraction).where(
        ExtractionUseRow.project_id == project_id, ExtractionUseRow.audit_id == audit_id
    )
    return list(session.scalars(query))


def _add(session: Session, audit: AuditRow, extraction: str, base_sha256: str, adapter_sha256: str) -> None:
    session.add(
        ExtractionUseRow(
            id=new_id("use"),
            project_id=audit.project_id,
            created_at=datetime.now(UTC),
            audit_id=audit.id,
            extraction=extraction,
            base_sha256=base_sha256,
            adapter_sha256=adapter_sha256,
        )
    )


def _let_go(session: Session, project_id: str, audit_id: str, extractions: set[str]) -> None:
    """Remove uses, and have what nobody uses any more removed from the store."""
    if not extractions:
        return
    of_these = (
        ExtractionUseRow.project_id == project_id,
        ExtractionUseRow.extraction.in_(sorted(extractions)),
    )
    session.scalars(
        select(ExtractionUseRow.id).where(*of_these).order_by(ExtractionUseRow.id).with_for_update()
    ).all()
    session.execute(
        delete(ExtractionUseRow)
        .where(*of_these, ExtractionUseRow.audit_id == audit_id)
        .execution_options(synchronize_session=False)
    )
    still = set(session.scalars(select(ExtractionUseRow.extraction).where(*of_these)))
    for extraction in sorted(extractions - still):
        session.add(
            DeletionRow(
                id=new_id("del"),
                project_id=project_id,
                created_at=datetime.now(UTC),
                prefix=extraction_prefix(project_id, extraction),
            )
        )
    session.flush()
