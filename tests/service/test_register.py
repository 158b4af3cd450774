"""Registering a model from a folder, and closing uploads whose time is over."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atomscope.errors import InvalidInput
from atomscope_service.db.models import UploadRow
from atomscope_service.db.repositories import Repositories
from atomscope_service.uploads.expiry import expire_uploads
from atomscope_service.uploads.register import register_model
from tests.service.deployment import DATASET, MODEL, Tenant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as a hub's folder holds it: other formats and notes beside the files that are used."""
    for name, content in MODEL.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    (tmp_path / "modeling_custom.py").write_text("raise SystemExit")
    (tmp_path / "README.md").write_text("# a model")
    (tmp_path / "onnx").mkdir()
    return tmp_path


def test_a_registered_model_is_ready_and_holds_its_own_files_only(tenant: Tenant, folder: Path) -> None:
    row = register_model(tenant.deployment.settings, tenant.project_id, "tiny", folder)
    shown = tenant.get(f"/v1/models/{row.id}").json()
    assert (shown["source"], shown["status"], shown["architecture"]) == (
        "registered",
        "ready",
        "LlamaForCausalLM",
    )
    prefix = f"projects/{tenant.project_id}/models/{row.id}/"
    stored = {item.key.removeprefix(prefix): item.size for item in tenant.deployment.store.list(prefix)}
    assert stored == {name: len(content) for name, content in MODEL.items()}
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in MODEL.items())
    assert shown["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert tenant.create("model", MODEL).json()["sha256"] == shown["sha256"]


def test_registering_the_same_again_changes_nothing(tenant: Tenant, folder: Path) -> None:
    first = register_model(tenant.deployment.settings, tenant.project_id, "tiny", folder)
    again = register_model(tenant.deployment.settings, tenant.project_id, "tiny", folder)
    assert again.id == first.id
    (folder / "config.json").write_text(json.dumps({"architectures": ["GemmaForCausalLM"]}))
    assert register_model(tenant.deployment.settings, tenant.project_id, "tiny", folder).id != first.id
    assert len(tenant.get("/v1/models").json()["data"]) == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("no weights", "file_missing"),
        ("no tokenizer", "file_missing"),
        ("auto_map", "remote_code"),
        ("cut", "bad_safetensors"),
        ("no folder", "no_such_folder"),
        ("no project", "no_such_project"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tenant: Tenant, folder: Path, change: str, code: str) -> None:
    project = tenant.project_id
    match change:
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "auto_map":
            (folder / "config.json").write_text('{"auto_map": {}}')
        case "cut":
            (folder / "model.safetensors").write_bytes(MODEL["model.safetensors"][:-1])
        case "no folder":
            folder = folder / "none"
        case _:
            project = "prj_none"
    with pytest.raises(InvalidInput) as caught:
        register_model(tenant.deployment.settings, project, "tiny", folder)
    assert caught.value.code == code
    assert tenant.get("/v1/models").json()["data"] == []


def test_uploads_past_their_time_are_closed_whether_complete_or_not(tenant: Tenant) -> None:
    expire_uploads(tenant.deployment.database, tenant.deployment.store)  # of other tests
    pending = tenant.open_upload("dataset", DATASET)["id"]
    complete = tenant.upload("dataset", DATASET)
    young = tenant.upload("dataset", DATASET)
    for upload_id in (pending, complete):
        tenant.change(UploadRow, upload_id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert expire_uploads(tenant.deployment.database, tenant.deployment.store) == 2
    assert expire_uploads(tenant.deployment.database, tenant.deployment.store) == 0
    statuses = {upload["id"]: upload["status"] for upload in tenant.get("/v1/uploads").json()["data"]}
    assert statuses == {pending: "expired", complete: "expired", young: "completed"}
    with tenant.deployment.database.read() as session:
        prefixes = {row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=10)}
    assert prefixes == {
        f"projects/{tenant.project_id}/uploads/{upload_id}/" for upload_id in (pending, complete)
    }
    answer = tenant.post("/v1/datasets", json={"name": "d", "upload_id": complete})
    assert answer.json()["code"] == "upload_not_completed"
