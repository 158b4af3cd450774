"""A whole service on SQLite and a local folder, and clients of its projects."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save

from atomscope.store import LocalStore
from atomscope_service.app import create_app
from atomscope_service.auth.keys import create_key
from atomscope_service.auth.secret import ensure_secret
from atomscope_service.db.engine import Database
from atomscope_service.db.models import AuditRow
from atomscope_service.db.projects import create_project
from atomscope_service.db.repositories import Repositories
from atomscope_service.ids import new_id
from atomscope_service.settings import Settings, load_settings

BASE_URL = "http://testserver.local"


class RecordingQueue:
    """Writes down what the API tells control."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.failure: Exception | None = None

    def _tell(self, *message: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append(message)

    def audit_created(self, project_id: str, audit_id: str) -> None:
        self._tell("audit_created", project_id, audit_id)

    def cancel_requested(self, project_id: str, audit_id: str) -> None:
        self._tell("cancel_requested", project_id, audit_id)

    def deletions_added(self) -> None:
        self._tell("deletions_added")

    def job_added(self, project_id: str, job_id: str) -> None:
        self._tell("job_added", project_id, job_id)

    def hub_import_requested(self, project_id: str, model_id: str) -> None:
        self._tell("hub_import_requested", project_id, model_id)

    def ping(self) -> None:
        self._tell("ping")


class Deployment:
    """The parts of one service. `template` is a migrated SQLite file, copied since migrating takes longer."""

    def __init__(self, folder: Path, template: Path, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, folder / "atomscope.db")
        environment = {
            "ATOMSCOPE_DATABASE_URL": f"sqlite:///{folder / 'atomscope.db'}",
            "ATOMSCOPE_STORE": (folder / "store").as_uri(),
            "ATOMSCOPE_BROKER_URL": "redis://nowhere",
            "ATOMSCOPE_SECRET_FILE": str(folder / "secret"),
            "ATOMSCOPE_BASE_URL": BASE_URL,
            "ATOMSCOPE_EVENT_POLL_SECONDS": "0.02",
            "ATOMSCOPE_EVENT_HEARTBEAT_SECONDS": "0.1",
        }
        environment |= {f"ATOMSCOPE_{name.upper()}": str(value) for name, value in settings.items()}
        self.folder = folder
        self.settings: Settings = load_settings(environment)
        self.secret = ensure_secret(self.settings.secret_file)
        self.database = Database(self.settings.database_url)
        self.store = LocalStore(folder / "store")
        self.queue = RecordingQueue()
        self.app = create_app(self.settings, self.queue)

    def new_project(self, name: str | None = None) -> tuple[str, str]:
        """Id and key of a new project."""
        with self.database.write() as session:
            project = create_project(session, name or new_id("prj"))
            _, key = create_key(Repositories(session, project.id), self.secret, "test key")
        return project.id, key


class Tenant:
    """A project's client: requests carry its key."""

    def __init__(self, deployment: Deployment, client: httpx.Client) -> None:
        self.deployment = deployment
        self.http = client
        self.project_id, self.key = deployment.new_project()
        self.headers = {"Authorization": f"Bearer {self.key}"}

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **rest: Any
    ) -> httpx.Response:
        return self.http.request(method, url, headers=self.headers | dict(headers or {}), **rest)

    def get(self, url: str, **rest: Any) -> httpx.Response:
        return self.request("GET", url, **rest)

    def post(self, url: str, **rest: Any) -> httpx.Response:
        return self.request("POST", url, **rest)

    def delete(self, url: str, **rest: Any) -> httpx.Response:
        return self.request("DELETE", url, **rest)

    def open_upload(self, purpose: str, files: Mapping[str, bytes]) -> dict[str, Any]:
        """A pending upload of these files."""
        answer = self.post("/v1/uploads", json={"purpose": purpose, "files": describe(files)})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def send_parts(self, upload: dict[str, Any], files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        """Put every part to its URL, without the key; what `complete` takes."""
        completed: list[dict[str, Any]] = []
        for file in upload["files"]:
            parts: list[dict[str, Any]] = []
            for part in file["parts"]:
                content = files[file["path"]][part["offset"] : part["offset"] + part["size"]]
                answer = self.http.put(part["url"], content=content)
                assert answer.status_code == 200, answer.text
                parts.append({"number": part["number"], "etag": answer.headers["ETag"]})
            completed.append({"path": file["path"], "parts": parts})
        return completed

    def upload(self, purpose: str, files: Mapping[str, bytes]) -> str:
        """Id of a completed upload."""
        upload = self.open_upload(purpose, files)
        completed = self.send_parts(upload, files)
        answer = self.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed})
        assert answer.status_code == 200, answer.text
        return upload["id"]

    def create(self, kind: str, files: Mapping[str, bytes]) -> httpx.Response:
        """The answer to creating a model, adapter or data set of these files."""
        upload_id = self.upload(kind, files)
        return self.post(f"/v1/{kind}s", json={"name": f"a {kind}", "upload_id": upload_id})

    def make_inputs(self) -> dict[str, str]:
        """Ids of a model, an adapter and a data set, as the body of `POST /v1/audits` takes them."""
        ids: dict[str, str] = {}
        for field, kind, files in (
            ("base_model", "model", MODEL),
            ("adapter", "adapter", ADAPTER),
            ("dataset", "dataset", DATASET),
        ):
            answer = self.create(kind, files)
            assert answer.status_code == 201, answer.text
            ids[field] = answer.json()["id"]
        return ids

    def make_audit(self) -> str:
        """Id of a queued audit."""
        answer = self.post("/v1/audits", json=self.make_inputs())
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def insert_audit(self, **columns: Any) -> str:
        """Id of an audit whose row is written as it is, for states that take a whole pipeline to reach."""
        values: dict[str, Any] = {
            "status": "queued",
            "attempt": 1,
            "base_model_id": "mdl_none",
            "adapter_id": "ada_none",
            "dataset_id": "ds_none",
            "config": {},
            "metadata_": {},
            "warnings": [],
            "event_sequence": 0,
        }
        row = AuditRow(
            id=new_id("aud"), project_id=self.project_id, created_at=datetime.now(UTC), **(values | columns)
        )
        with self.deployment.database.write() as session:
            Repositories(session, self.project_id).audits.add(row)
        return row.id

    def change(self, table: type[Any], row_id: str, **columns: Any) -> None:
        """Set columns of a row, as control would."""
        with self.deployment.database.write() as session:
            row = session.get(table, row_id)
            assert row is not None
            for name, value in columns.items():
                setattr(row, name, value)


def describe(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """`files` of `POST /v1/uploads`."""
    return [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]


def tensors(*names: str) -> bytes:
    """A safetensors file of small float32 tensors."""
    random = np.random.default_rng(0)
    return save({name: random.normal(size=(2, 3)).astype(np.float32) for name in names})


ADAPTER = {
    "adapter_config.json": json.dumps(
        {
            "peft_type": "LORA",
            "r": 2,
            "target_modules": ["v_proj", "q_proj"],
            "base_model_name_or_path": "tiny",
        }
    ).encode(),
    "adapter_model.safetensors": tensors("a.lora_A.weight", "a.lora_B.weight"),
    "README.md": b"# an adapter\n",
}
MODEL = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": tensors("weight"),
}
DATASET = {"train.jsonl": b'{"prompt": "a", "completion": "b"}\n' * 20}
