"""Outputs go to a real S3 server while the unit goes on; what fails there ends it, uncommitted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from atomscope.bundle import layout
from atomscope.store import ObjectStore, StoreError, open_store
from atomscope.store._s3 import S3Store
from atomscope.store._s3_client import MIB
from atomscope.types.bundle import StoredShard
from atomscope_workers.celery_context import UPLOADS_AT_ONCE, UPLOADS_WAITING, StoreContext
from atomscope_workers.stored_entry import Entry
from tests.fixtures.s3 import S3Server
from tests.workers.test_stored_shards import OWN, SPEC, WORK, context


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    made = open_store(f"s3://{bucket}")
    made.put_bytes(f"{WORK}spec.json", msgspec.json.encode(SPEC))
    shards = [StoredShard(name="mine")]
    prefix = layout.unit_prefix(WORK, "validate", 0, 1)
    made.put_bytes(f"{prefix}{layout.SHARDS}", msgspec.json.encode(shards))
    return made


def written(ctx: StoreContext, path: str, content: bytes) -> None:
    scratch = ctx.scratch / "same name"
    scratch.write_bytes(content)
    ctx.write(path, scratch)


def test_what_was_fetched_and_forgotten_is_fetched_again(store: ObjectStore, tmp_path: Path) -> None:
    ctx = context(store, tmp_path, "extract", 0)
    first = ctx.read(layout.SHARDS)
    assert ctx.read(layout.SHARDS) == first
    ctx.forget(layout.SHARDS)
    assert not first.exists()
    ctx.forget(layout.SHARDS)
    assert ctx.read(layout.SHARDS).read_bytes() == msgspec.json.encode([StoredShard(name="mine")])
    ctx.close()


def test_every_output_is_there_whole_once_committed(store: ObjectStore, tmp_path: Path) -> None:
    """A stage uses one name of a file again and again: what was written first is not lost to the next."""
    ctx, many = context(store, tmp_path, "extract", 0), UPLOADS_AT_ONCE + UPLOADS_WAITING + 5
    contents = {
        layout.gradient_shard(0): b"gradients" * 1000,
        layout.shard_losses(0): b"losses",
        "work/other": b"other",
        **{layout.vector(index): f"vector {index}".encode() for index in range(many)},
    }
    for path, content in contents.items():
        written(ctx, path, content)
    ctx.commit()
    ctx.close()
    own = layout.unit_prefix(WORK, "extract", 0, 1)
    stored = {path: f"{OWN}mine/f1/{name}" for name, of in layout.STORED_FILES.items() for path in [of(0)]}
    for path, content in contents.items():
        assert store.get_bytes(stored.get(path, f"{own}{path}")) == content
    entry = msgspec.json.decode(store.get_bytes(f"{OWN}mine/f1/{layout.ENTRY}"), type=Entry)
    assert {name: file.sha256 for name, file in entry.files.items()} == {
        "gradients.safetensors": hashlib.sha256(contents[layout.gradient_shard(0)]).hexdigest(),
        "losses.safetensors": hashlib.sha256(b"losses").hexdigest(),
    }
    assert not list((ctx.scratch.parent / "outbox").iterdir())


def test_a_store_that_fails_is_told_of_and_nothing_is_committed(
    store: ObjectStore, bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody aborts the upload in parts before its end: the real server refuses what is left of it."""
    monkeypatch.setattr("atomscope.store._s3._PART", 5 * MIB)
    failing = open_store(f"s3://{bucket}")
    assert isinstance(failing, S3Store)
    other = s3_server.client()

    def abort(params: dict[str, str], **_: object) -> None:
        other.abort_multipart_upload(Bucket=bucket, Key=params["Key"], UploadId=params["UploadId"])

    failing._client.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", abort)
    ctx = context(failing, tmp_path, "extract", 0)
    written(ctx, layout.shard_losses(0), b"losses")
    written(ctx, layout.gradient_shard(0), b"g" * (5 * MIB + 1))
    with pytest.raises(StoreError, match=r"gradients\.safetensors"):
        ctx.commit()
    ctx.close()
    left = {item.key for item in store.list(OWN)} | {item.key for item in store.list(f"{WORK}units/extract/")}
    assert left == {f"{OWN}mine/f1/losses.safetensors"}  # no entry, no unit: nobody will read it
    assert not other.list_multipart_uploads(Bucket=bucket).get("Uploads")
