"""How many units the stages of an audit have, as its plan says"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audits", sa.Column("planned_units", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("audits", "planned_units")
