"""API keys: `ask_` and 32 random bytes; only their HMAC-SHA-256 under the server's secret is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from sqlalchemy import select, update

from atomscope_service.auth.secret import Secret, write_private_file
from atomscope_service.db.engine import Database
from atomscope_service.db.models import APIKeyRow
from atomscope_service.db.projects import DEFAULT_PROJECT, ensure_default_project
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id

_KEY = re.compile(r"ask_[A-Za-z0-9_-]{43}")
HINT_LENGTH = 10
USED_RESOLUTION = timedelta(minutes=5)
"""`last_used_at` is written at most this often, so that a read does not mean a write."""


class Caller(msgspec.Struct, frozen=True):
    """Who a request comes from."""

    project_id: str
    key_id: str


def hash_key(secret: Secret, key: str) -> str:
    """What is stored of a key: 64 hexadecimal digits."""
    return hmac.new(secret.derive("api-keys"), key.encode(), hashlib.sha256).hexdigest()


def create_key(repositories: Repositories, secret: Secret, name: str) -> tuple[APIKeyRow, str]:
    """Add a key to the project; the second value is the key itself, which cannot be read again."""
    key = "ask_" + secrets.token_urlsafe(32)
    row = APIKeyRow(
        id=new_id("key"),
        project_id=repositories.project_id,
        created_at=datetime.now(UTC),
        name=name,
        hint=key[:HINT_LENGTH],
        hmac=hash_key(secret, key),
    )
    return repositories.api_keys.add(row), key


def authenticate(database: Database, secret: Secret, key: str) -> Caller | None:
    """Who holds this key; None for one that is malformed, unknown or revoked.

    The one lookup across projects: the key decides the project. What is looked up is an HMAC, so the
    time the index takes tells nothing about keys; it is compared once more in constant time.
    """
    if _KEY.fullmatch(key) is None:
        return None
    digest = hash_key(secret, key)
    with database.read() as session:
        row = session.scalar(select(APIKeyRow).where(APIKeyRow.hmac == digest))
    if row is None or row.revoked_at is not None or not hmac.compare_digest(row.hmac, digest):
        return None
    now = datetime.now(UTC)
    if row.last_used_at is None or now - row.last_used_at > USED_RESOLUTION:
        with database.write() as session:
            session.execute(update(APIKeyRow).where(APIKeyRow.id == row.id).values(last_used_at=now))
    return Caller(row.project_id, row.id)


def write_first_key(database: Database, secret: Secret, path: Path) -> bool:
    """Give a fresh installation its first key, in a new file of mode 0600; False when it has keys.

    Raises `FileExistsError` when the file is there but the database has no key: then it belongs to
    another installation.
    """
    with database.write() as session:
        ensure_default_project(session)
        repositories = Repositories(session, DEFAULT_PROJECT)
        if repositories.api_keys.count():
            return False
        _, key = create_key(repositories, secret, "first key")
        write_private_file(path, key.encode() + b"\n")
    return True
