"""Alembic's entry point: runs the migrations on the connection that `db.migrate` gives."""

from __future__ import annotations

from alembic import context

from atomscope_service.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
