"""Alembic migrations of the metadata tables."""
