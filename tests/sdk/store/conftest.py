"""One store of each kind, empty: every conformance test runs on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscope.store import LocalStore, ObjectStore, open_store
from atomscope.store._s3 import S3Store
from tests.fixtures.s3 import S3Server


@pytest.fixture(scope="session")
def shared_s3_store(s3_server: S3Server) -> S3Store:
    """One store for all tests: making boto3's client takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        store = open_store(f"s3://{s3_server.new_bucket()}/tests/here")
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, its address and keys in this process's environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_store(s3_environment: S3Server, shared_s3_store: S3Store) -> Iterator[S3Store]:
    """A store under a prefix of a bucket, empty."""
    yield shared_s3_store
    for item in shared_s3_store.list(""):
        shared_s3_store.delete(item.key)


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    return request.getfixturevalue(f"{request.param}_store")
