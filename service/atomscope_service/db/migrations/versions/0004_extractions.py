"""Extractions that several audits use, and refits"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from atomscope_service.db.models import UTCDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "extraction_uses",
        sa.Column("audit_id", sa.String(length=64), nullable=False),
        sa.Column("extraction", sa.String(length=64), nullable=False),
        sa.Column("base_sha256", sa.String(length=64), nullable=False),
        sa.Column("adapter_sha256", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("audit_id", "extraction"),
    )
    op.create_index("ix_extraction_uses_extraction", "extraction_uses", ["extraction"], unique=False)
    op.create_index("ix_extraction_uses_project_id", "extraction_uses", ["project_id"], unique=False)
    op.create_index(
        "ix_extraction_uses_inputs",
        "extraction_uses",
        ["project_id", "base_sha256", "adapter_sha256"],
        unique=False,
    )
    op.add_column("audits", sa.Column("parent_id", sa.String(length=64), nullable=True))
    op.create_index("ix_audits_parent_id", "audits", ["parent_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_audits_parent_id", "audits")
    op.drop_column("audits", "parent_id")
    for name in ("inputs", "project_id", "extraction"):
        op.drop_index(f"ix_extraction_uses_{name}", "extraction_uses")
    op.drop_table("extraction_uses")
