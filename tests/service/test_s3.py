"""Uploads, signed links and bundles on a real S3 server: the same requests as on a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.testing import TestClient

from atomscope.store import open_store
from atomscope_service.app import create_app
from atomscope_service.db.models import AuditRow, UploadRow
from atomscope_service.uploads.expiry import expire_uploads
from tests.fixtures.s3 import S3Server
from tests.service.bundles import vector, write_bundle
from tests.service.deployment import ADAPTER, BASE_URL, DATASET, Deployment, Tenant

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def s3(
    s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[Deployment]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        s3_server.client().create_bucket(Bucket="service")
        made = Deployment(
            tmp_path_factory.mktemp("s3-service"),
            migrated_sqlite,
            store="s3://service/prefix",
            part_bytes=5 * MiB,
        )
        made.store = open_store("s3://service/prefix")  # type: ignore[assignment]
        yield made
        made.database.dispose()


class S3Tenant(Tenant):
    """A tenant whose part URLs lead to another server than its requests."""

    def send_parts(self, upload: dict[str, Any], files: Any) -> list[dict[str, Any]]:
        completed: list[dict[str, Any]] = []
        for file in upload["files"]:
            parts: list[dict[str, Any]] = []
            for part in file["parts"]:
                assert not part["url"].startswith(BASE_URL)
                content = files[file["path"]][part["offset"] : part["offset"] + part["size"]]
                answer = httpx.put(part["url"], content=content)
                assert answer.status_code == 200, answer.text
                parts.append({"number": part["number"], "etag": answer.headers["ETag"]})
            completed.append({"path": file["path"], "parts": parts})
        return completed


@pytest.fixture(scope="module")
def owner(s3: Deployment) -> Iterator[S3Tenant]:
    with TestClient(create_app(s3.settings, s3.queue), base_url=BASE_URL) as http:
        yield S3Tenant(s3, http)


def test_parts_go_straight_to_the_store_and_are_joined_there(owner: S3Tenant) -> None:
    content = bytes(range(256)) * (6 * MiB // 256) + b"end"
    files = {"data.jsonl": content}
    upload = owner.open_upload("dataset", files)
    assert [part["size"] for part in upload["files"][0]["parts"]] == [5 * MiB, MiB + 3]
    completed = owner.send_parts(upload, files)
    for _ in range(2):
        answer = owner.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed})
        assert answer.status_code == 200, answer.text
    dataset = owner.post("/v1/datasets", json={"name": "d", "upload_id": upload["id"]}).json()
    key = f"projects/{owner.project_id}/datasets/{dataset['id']}/data.jsonl"
    assert owner.deployment.store.get_bytes(key) == content


def test_an_adapter_is_checked_by_its_header_in_the_store(owner: S3Tenant) -> None:
    assert owner.create("adapter", ADAPTER).status_code == 201
    cut = {**ADAPTER, "adapter_model.safetensors": ADAPTER["adapter_model.safetensors"][:-1]}
    assert owner.create("adapter", cut).json()["code"] == "bad_safetensors"


def test_an_empty_file_can_be_sent(owner: S3Tenant) -> None:
    assert owner.create("dataset", {"empty.jsonl": b""}).json()["size"] == 0


def test_another_content_closes_the_upload(owner: S3Tenant) -> None:
    upload = owner.open_upload("dataset", DATASET)
    body = {"files": owner.send_parts(upload, {"train.jsonl": DATASET["train.jsonl"].swapcase()})}
    answer = owner.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "checksum_mismatch")
    assert owner.get(f"/v1/uploads/{upload['id']}").json()["status"] == "expired"


def test_a_part_that_was_not_sent_is_told(owner: S3Tenant) -> None:
    upload = owner.open_upload("dataset", DATASET)
    parts = [{"number": 1, "etag": '"0123456789abcdef0123456789abcdef"'}]
    body = {"files": [{"path": "train.jsonl", "parts": parts}]}
    answer = owner.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "parts_missing")
    body = {"files": owner.send_parts(upload, DATASET)}
    assert owner.post(f"/v1/uploads/{upload['id']}/complete", json=body).status_code == 200


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_an_upload_that_is_given_up_keeps_no_parts(owner: S3Tenant, s3_server: S3Server, how: str) -> None:
    upload = owner.open_upload("dataset", DATASET)
    owner.send_parts(upload, DATASET)

    def open_multiparts() -> list[str]:
        listed = s3_server.client().list_multipart_uploads(Bucket="service").get("Uploads", [])
        return [item["Key"] for item in listed if upload["id"] in item["Key"]]

    assert open_multiparts()
    if how == "deleted":
        assert owner.delete(f"/v1/uploads/{upload['id']}").status_code == 200
    else:
        owner.change(UploadRow, upload["id"], expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert expire_uploads(owner.deployment.database, owner.deployment.store) == 1
    assert open_multiparts() == []


def test_our_own_part_and_file_routes_are_closed(owner: S3Tenant) -> None:
    from atomscope_service.uploads.links import FileLink, PartLink

    upload = owner.open_upload("dataset", DATASET)
    key = owner.deployment.secret.derive("links")
    link = PartLink(
        project_id=owner.project_id, upload_id=upload["id"], file=0, part=1, size=700, expires=2**33
    )
    assert owner.http.put(link.url(BASE_URL, key), content=bytes(700)).status_code == 404
    assert owner.http.get(FileLink(key="projects/x", expires=2**33).url(BASE_URL, key)).status_code == 404


def test_findings_and_a_steered_adapter_come_from_the_store(owner: S3Tenant) -> None:
    audit_id = owner.insert_audit(status="succeeded")
    prefix = f"projects/{owner.project_id}/audits/{audit_id}/bundle-a1-f1/"
    write_bundle(owner.deployment.store, prefix, audit_id)
    owner.change(AuditRow, audit_id, bundle_prefix=prefix)
    assert len(owner.get(f"/v1/audits/{audit_id}/atoms").json()["data"]) == 3
    assert owner.get(f"/v1/audits/{audit_id}/atoms/1/documents").json()["data"][0]["id"] == "doc-0"
    assert owner.get(f"/v1/audits/{audit_id}/atoms/1/vector").content == vector(1)
    for file in owner.get(f"/v1/audits/{audit_id}/bundle").json()["files"]:
        assert hashlib.sha256(httpx.get(file["url"]).content).hexdigest() == file["sha256"]
    steered = owner.post("/v1/steered-adapters", json={"audit": audit_id, "strengths": {"1": 0.5}}).json()
    files = owner.get(f"/v1/steered-adapters/{steered['id']}/download").json()["files"]
    assert sum(len(httpx.get(file["url"]).content) for file in files) == steered["size"]
