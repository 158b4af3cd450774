"""Imports from a hub, with a server on this machine standing in for the hub: no network is needed."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import select

from atomscope.input_files import folder_digest
from atomscope_service.control.hub import import_models
from atomscope_service.db.models import DeletionRow, ModelRow
from atomscope_service.ids import new_id
from tests.service.control.site import Site

REVISION = "a" * 40
FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": save({"w": np.zeros((2, 2), np.float32)}),
    "pytorch_model.bin": b"\x80\x04pickle",
    "modeling_custom.py": b"raise SystemExit",
    "README.md": b"# A model",
    "onnx/model.onnx": b"x",
}
KEPT = ("config.json", "model.safetensors", "tokenizer.json")


class Hub:
    """The two routes of a hub that an import needs, and what was asked of them."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.revision = REVISION
        self.status = 200
        self.downloaded: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, *_: object) -> None:
                """Nothing: the tests look at what was asked for."""

            def _answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0]
                status, content, headers = hub.answer(path)
                if body and "/resolve/" in path and status == 200:
                    hub.downloaded.append(path.split(f"{REVISION}/", 1)[1])
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if self.status != 200:
            return self.status, b"{}", {}
        if path.startswith("/api/models/org/model/revision/"):
            siblings = [
                {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}  # noqa: S324
                for name, content in self.files.items()
            ]
            told: dict[str, Any] = {"id": "org/model", "sha": self.revision, "siblings": siblings}
            return 200, json.dumps(told).encode(), {"Content-Type": "application/json"}
        name = path.removeprefix(f"/org/model/resolve/{REVISION}/")
        if name in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            return 200, self.files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield made
    made.close()


def _ask(site: Site, age: timedelta = timedelta()) -> ModelRow:
    model = new_id("mdl")
    row = ModelRow(
        id=model,
        project_id=site.project,
        created_at=datetime.now(UTC) - age,
        name="hub model",
        source="hub",
        status="importing",
        prefix=f"projects/{site.project}/models/{model}/",
        size=0,
        hub_id="org/model",
        revision=REVISION,
    )
    with site.database.write() as session:
        session.add(row)
    return row


def _import(site: Site, **changes: Any) -> int:
    allowed = msgspec.structs.replace(site.settings, **({"hub_import": True} | changes))
    return import_models(site.database, site.store, site.broker, allowed)


def _row(site: Site, model: ModelRow) -> ModelRow:
    with site.database.read() as session:
        return session.scalars(select(ModelRow).where(ModelRow.id == model.id)).one()


def test_an_import_brings_the_files_of_a_model_and_nothing_that_may_hold_code(site: Site, hub: Hub) -> None:
    model = _ask(site)
    assert _import(site) == 1
    row = _row(site, model)
    assert (row.status, row.error, row.architecture) == ("ready", None, "LlamaForCausalLM")
    assert [item.key.removeprefix(row.prefix) for item in site.store.list(row.prefix)] == list(KEPT)
    assert set(hub.downloaded) == set(KEPT)
    assert row.size == sum(len(FILES[name]) for name in KEPT)
    assert row.sha256 == folder_digest({name: hashlib.sha256(FILES[name]).hexdigest() for name in KEPT})
    assert site.store.get_bytes(f"{row.prefix}model.safetensors") == FILES["model.safetensors"]


def test_an_import_that_is_not_allowed_fails_and_says_so(site: Site, hub: Hub) -> None:
    model = _ask(site)
    assert _import(site, hub_import=False) == 1
    row = _row(site, model)
    assert (row.status, row.error) == ("failed", "the operator does not allow imports from a hub")
    assert hub.downloaded == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("revision", "not " + REVISION),
        ("no_weights", "safetensors"),
        ("remote_code", "auto_map"),
        ("truncated", "model.safetensors"),
        ("too_large", "allowed"),
        ("gone", "404"),
    ],
)
def test_a_model_that_cannot_be_taken_fails_with_its_reason_and_leaves_nothing(
    site: Site, hub: Hub, fault: str, told: str
) -> None:
    changes: dict[str, Any] = {}
    if fault == "revision":
        hub.revision = "b" * 40
    elif fault == "no_weights":
        del hub.files["model.safetensors"]
    elif fault == "remote_code":
        hub.files["config.json"] = json.dumps({"auto_map": {"AutoModel": "modeling_custom.M"}}).encode()
    elif fault == "truncated":
        hub.files["model.safetensors"] = FILES["model.safetensors"][:-3]
    elif fault == "too_large":
        changes["max_model_bytes"] = 10
    else:
        hub.status = 404
    model = _ask(site)
    assert _import(site, **changes) == 1
    row = _row(site, model)
    assert row.status == "failed"
    assert row.error is not None
    assert told in row.error
    with site.database.read() as session:
        assert list(session.scalars(select(DeletionRow.prefix))) == [row.prefix]


def test_a_hub_that_is_down_is_asked_again_later(site: Site, hub: Hub) -> None:
    hub.status = 503
    model = _ask(site)
    assert _import(site) == 0
    assert _row(site, model).status == "importing"
    hub.status = 200
    assert _import(site) == 1
    assert _row(site, model).status == "ready"


def test_a_hub_that_stays_down_is_given_up_after_a_day(site: Site, hub: Hub) -> None:
    hub.status = 503
    model = _ask(site, age=timedelta(hours=25))
    assert _import(site) == 1
    assert _row(site, model).status == "failed"


def test_a_model_that_another_control_worker_imports_is_left_to_it(site: Site, hub: Hub) -> None:
    model = _ask(site)
    assert site.broker.hold(f"import:{model.id}", "another", 60)
    assert _import(site) == 0
    assert not site.broker.hold(f"import:{model.id}", "third", 60)
    site.broker.release(f"import:{model.id}", "another")
    assert _import(site) == 1
    assert hub.downloaded


def test_a_model_deleted_during_its_import_leaves_no_files_behind(site: Site, hub: Hub) -> None:
    model = _ask(site)
    answer = hub.answer

    def deleting(path: str) -> tuple[int, bytes, dict[str, str]]:
        with site.database.write() as session:
            row = session.get(ModelRow, model.id)
            if row is not None:
                session.delete(row)
        return answer(path)

    hub.answer = deleting  # type: ignore[method-assign]
    assert _import(site) == 1
    with site.database.read() as session:
        assert list(session.scalars(select(DeletionRow.prefix))) == [model.prefix]
