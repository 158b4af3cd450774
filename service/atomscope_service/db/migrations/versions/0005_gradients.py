"""When an audit let go of its gradients"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from atomscope_service.db.models import UTCDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audits", sa.Column("gradients_expired_at", UTCDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("audits", "gradients_expired_at")
