"""Formats, units and powers of steered adapters"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("steered_adapters") as table:
        for name, before in (("format", "adapter"), ("unit", "norm")):
            table.add_column(sa.Column(name, sa.String(length=16), nullable=False, server_default=before))
        table.add_column(sa.Column("power", sa.String(length=8), nullable=True))
    with op.batch_alter_table("steered_adapters") as table:
        for name in ("format", "unit"):
            table.alter_column(name, existing_type=sa.String(length=16), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("steered_adapters") as table:
        for name in ("format", "unit", "power"):
            table.drop_column(name)
