"""Uploads to the local store: geometry, signatures, exact sizes, digests, names, and what is made of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from litestar.testing import TestClient

from atomscope.input_files import DATASET_ENDINGS, folder_digest
from atomscope_service.db.models import UploadRow
from atomscope_service.db.repositories import Repositories
from tests.service.deployment import ADAPTER, BASE_URL, DATASET, MODEL, Deployment, Tenant, describe, tensors

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Tenant]:
    """A tenant of a service with parts of 5 MiB and tight limits."""
    made = Deployment(
        tmp_path_factory.mktemp("small-parts"),
        migrated_sqlite,
        part_bytes=5 * MiB,
        max_dataset_bytes=12 * MiB,
        max_adapter_bytes=1 * MiB,
    )
    with TestClient(made.app, base_url=BASE_URL) as http:
        yield Tenant(made, http)
    made.database.dispose()


def stored(tenant: Tenant) -> list[str]:
    """Keys of the tenant's objects, those of uploads that are to be deleted aside."""
    with tenant.deployment.database.read() as session:
        gone = [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=1000)]
    prefix = f"projects/{tenant.project_id}/"
    return [
        item.key.removeprefix(prefix)
        for item in tenant.deployment.store.list(prefix)
        if not any(item.key.startswith(deleted) for deleted in gone)
    ]


# ------------------------------------------------------------------ the way in


def test_a_file_of_several_parts_is_joined_in_order(small_parts: Tenant) -> None:
    content = bytes(range(256)) * (11 * MiB // 256) + b"the end"
    files = {"data.jsonl": content}
    upload = small_parts.open_upload("dataset", files)
    parts = upload["files"][0]["parts"]
    assert [(part["number"], part["offset"], part["size"]) for part in parts] == [
        (1, 0, 5 * MiB),
        (2, 5 * MiB, 5 * MiB),
        (3, 10 * MiB, MiB + 7),
    ]
    completed = small_parts.send_parts(upload, files)
    completed[0]["parts"].reverse()  # the order in which a client lists them is of no account
    answer = small_parts.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed})
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    prefix = f"projects/{small_parts.project_id}/uploads/{upload['id']}/"
    assert [item.key for item in small_parts.deployment.store.list(prefix)] == [f"{prefix}0"]
    assert small_parts.deployment.store.get_bytes(f"{prefix}0") == content


def test_an_empty_file_has_one_empty_part(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", {"empty.jsonl": b""})
    assert [part["size"] for part in upload["files"][0]["parts"]] == [0]
    assert tenant.upload("dataset", {"empty.jsonl": b""})


def test_a_pending_upload_can_be_taken_up_again(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    again = tenant.get(f"/v1/uploads/{upload['id']}").json()
    assert again == upload
    listed = tenant.get("/v1/uploads").json()["data"]
    assert [(item["id"], item["files"][0]["parts"]) for item in listed] == [(upload["id"], [])]
    completed = tenant.send_parts(again, DATASET)
    completed = tenant.send_parts(again, DATASET)  # a part may be sent twice
    assert tenant.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed}).status_code == 200


def test_completing_twice_is_no_error(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    body = {"files": tenant.send_parts(upload, DATASET)}
    first = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    second = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()


def test_completing_at_the_same_time_is_no_error(tenant: Tenant) -> None:
    upload = tenant.open_upload("model", MODEL)
    body = {"files": tenant.send_parts(upload, MODEL)}
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body), range(4))
        )
    assert {answer.status_code for answer in answers} == {200}


def test_a_completion_that_died_before_it_was_recorded_can_be_repeated(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    body = {"files": tenant.send_parts(upload, DATASET)}
    tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    tenant.change(UploadRow, upload["id"], status="pending")
    assert tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body).json()["status"] == "completed"


def test_deleting_an_upload_has_its_objects_removed(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    tenant.send_parts(upload, DATASET)
    assert tenant.delete(f"/v1/uploads/{upload['id']}").json() == {"id": upload["id"], "deleted": True}
    assert tenant.get(f"/v1/uploads/{upload['id']}").status_code == 404
    assert stored(tenant) == []
    assert ("deletions_added",) in tenant.deployment.queue.told
    url = upload["files"][0]["parts"][0]["url"]
    assert tenant.http.put(url, content=DATASET["train.jsonl"]).status_code == 404


# ---------------------------------------------------------------------- parts


@pytest.fixture
def part(tenant: Tenant) -> str:
    """URL of the one part of a pending upload of 700 bytes."""
    return tenant.open_upload("dataset", DATASET)["files"][0]["parts"][0]["url"]


def test_a_part_needs_no_key_but_an_intact_url(tenant: Tenant, part: str) -> None:
    content = DATASET["train.jsonl"]
    query = parse_qs(urlsplit(part).query)
    changes = {
        "signature": query["signature"][0].swapcase(),
        "expires": str(int(query["expires"][0]) + 3600),
        "size": str(len(content) + 1),
        "project": "prj_default",
    }
    for name, value in changes.items():
        forged = part.replace(f"{name}={query[name][0]}", f"{name}={value}")
        answer = tenant.http.put(forged, content=content)
        assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature"), name
    for path in ("/files/1/parts/1", "/files/0/parts/2"):
        answer = tenant.http.put(part.replace("/files/0/parts/1", path), content=content)
        assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature")
    another = tenant.open_upload("dataset", DATASET)["id"]
    answer = tenant.http.put(part.replace(urlsplit(part).path.split("/")[3], another), content=content)
    assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature")
    assert tenant.http.put(part, content=content).status_code == 200


def test_a_part_after_its_time_is_refused(tenant: Tenant, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + tenant.deployment.settings.upload_seconds + 1
    monkeypatch.setattr("atomscope_service.uploads.links.time.time", lambda: later)
    answer = tenant.http.put(part, content=DATASET["train.jsonl"])
    assert (answer.status_code, answer.json()["code"]) == (403, "link_expired")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("change", "status", "code"), [(1, 413, "part_too_large"), (-1, 400, "part_incomplete")]
)
def test_a_part_of_another_size_leaves_nothing(
    tenant: Tenant, part: str, change: int, status: int, code: str, streamed: bool
) -> None:
    content = (DATASET["train.jsonl"] + b"x")[: len(DATASET["train.jsonl"]) + change]
    answer = tenant.http.put(part, content=iter([content]) if streamed else content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    folder = tenant.deployment.store.local_path(f"projects/{tenant.project_id}")
    assert folder is not None
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_the_etag_of_a_part_is_its_digest(tenant: Tenant, part: str) -> None:
    answer = tenant.http.put(part, content=DATASET["train.jsonl"])
    assert answer.headers["ETag"] == f'"{hashlib.sha256(DATASET["train.jsonl"]).hexdigest()}"'
    assert answer.content == b""


def test_a_completed_upload_takes_no_more_parts(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    completed = tenant.send_parts(upload, DATASET)
    tenant.post(f"/v1/uploads/{upload['id']}/complete", json={"files": completed})
    answer = tenant.http.put(upload["files"][0]["parts"][0]["url"], content=DATASET["train.jsonl"])
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_completed")


# ----------------------------------------------------------------- completing


def test_another_content_is_noticed_and_closes_the_upload(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    changed = {"train.jsonl": DATASET["train.jsonl"].replace(b'"a"', b'"z"')}
    body = {"files": tenant.send_parts(upload, changed)}
    answer = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "checksum_mismatch")
    assert tenant.get(f"/v1/uploads/{upload['id']}").json()["status"] == "expired"
    again = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (again.status_code, again.json()["code"]) == (409, "upload_expired")
    assert stored(tenant) == []


def test_missing_parts_are_told_and_can_be_sent_later(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    body = {"files": [{"path": "train.jsonl", "parts": [{"number": 1, "etag": '"x"'}]}]}
    answer = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "parts_missing")
    body = {"files": tenant.send_parts(upload, DATASET)}
    assert tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body).status_code == 200


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([], "files_differ"),
        ([{"path": "other.jsonl", "parts": []}], "files_differ"),
        ([{"path": "train.jsonl", "parts": []}] * 2, "files_differ"),
        ([{"path": "train.jsonl", "parts": []}], "parts_missing"),
        ([{"path": "train.jsonl", "parts": [{"number": 2, "etag": "x"}]}], "parts_missing"),
        ([{"path": "train.jsonl", "parts": [{"number": 1, "etag": "x"}] * 2}], "parts_missing"),
    ],
)
def test_a_completion_names_every_part_once(tenant: Tenant, files: list[Any], code: str) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    answer = tenant.post(f"/v1/uploads/{upload['id']}/complete", json={"files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_an_upload_past_its_time_cannot_be_completed(tenant: Tenant) -> None:
    upload = tenant.open_upload("dataset", DATASET)
    body = {"files": tenant.send_parts(upload, DATASET)}
    tenant.change(UploadRow, upload["id"], expires_at=datetime.now(UTC) - timedelta(seconds=1))
    answer = tenant.post(f"/v1/uploads/{upload['id']}/complete", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_expired")


# ---------------------------------------------------------------- names, sizes


@pytest.mark.parametrize(
    "name",
    [
        "../x.jsonl",
        "a/b.jsonl",
        "/etc/x.jsonl",
        "..",
        ".",
        "a\\b.jsonl",
        "é.jsonl",
        "a b.jsonl",
        "-x.jsonl",
        "x\n.jsonl",
    ],
)
def test_names_that_are_not_plain_are_refused(tenant: Tenant, name: str) -> None:
    answer = tenant.post("/v1/uploads", json={"purpose": "dataset", "files": describe({name: b"x"})})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_file_name")
    assert answer.json()["param"] == "files[0].path"


@pytest.mark.parametrize("purpose", ["adapter", "model"])
@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "pytorch_model.BIN", "x.pt", "x.pkl", "x.pickle", "x.ckpt"]
)
def test_pickles_are_refused_before_they_are_sent(tenant: Tenant, purpose: str, name: str) -> None:
    answer = tenant.post("/v1/uploads", json={"purpose": purpose, "files": describe({name: b"x"})})
    assert (answer.status_code, answer.json()["code"]) == (422, "pickle_refused")
    assert "safetensors only" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("purpose", "names", "code"),
    [
        ("adapter", ["adapter_config.json"], "file_missing"),
        ("adapter", ["adapter_model.safetensors"], "file_missing"),
        ("adapter", ["adapter_config.json", "adapter_model.safetensors", "modeling.py"], "file_not_allowed"),
        ("dataset", ["data.xlsx"], "file_not_allowed"),
        ("dataset", ["data.jsonl.gz"], "file_not_allowed"),
        ("dataset", ["a.jsonl", "b.jsonl"], "one_file_only"),
        ("model", ["config.json", "tokenizer.json"], "file_missing"),
        ("model", ["config.json", "model.safetensors"], "file_missing"),
        ("model", ["tokenizer.json", "model.safetensors"], "file_missing"),
        (
            "model",
            ["config.json", "tokenizer.json", "model.safetensors", "modeling_x.py"],
            "file_not_allowed",
        ),
    ],
)
def test_an_upload_holds_what_its_purpose_needs(
    tenant: Tenant, purpose: str, names: list[str], code: str
) -> None:
    files = describe(dict.fromkeys(names, b"x"))
    answer = tenant.post("/v1/uploads", json={"purpose": purpose, "files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_file_cannot_be_named_twice(tenant: Tenant) -> None:
    files = describe({"adapter_config.json": b"x"}) * 2 + describe({"adapter_model.safetensors": b"x"})
    answer = tenant.post("/v1/uploads", json={"purpose": "adapter", "files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, "duplicate_file")


def test_uploads_over_the_limit_of_their_purpose_are_refused(small_parts: Tenant) -> None:
    for purpose, name, size, status in (
        ("dataset", "data.jsonl", 12 * MiB, 201),
        ("dataset", "data.jsonl", 12 * MiB + 1, 413),
        ("adapter", "adapter_model.safetensors", 1 * MiB, 413),
    ):
        files = [{"path": name, "size": size, "sha256": "0" * 64}]
        if purpose == "adapter":
            files += describe({"adapter_config.json": b"x"})
        answer = small_parts.post("/v1/uploads", json={"purpose": purpose, "files": files})
        assert answer.status_code == status
        if status == 413:
            assert answer.json()["code"] == "upload_too_large"


# -------------------------------------------------------- what is made of them


def test_an_adapter_is_made_of_its_two_files(tenant: Tenant) -> None:
    answer = tenant.create("adapter", ADAPTER)
    assert answer.status_code == 201
    adapter = answer.json()
    assert answer.headers["Location"] == f"/v1/adapters/{adapter['id']}"
    assert (adapter["rank"], adapter["target_modules"], adapter["base_model_name"]) == (
        2,
        ["q_proj", "v_proj"],
        "tiny",
    )
    kept = {name: ADAPTER[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert adapter["size"] == sum(len(content) for content in kept.values())
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in kept.items())
    assert adapter["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert stored(tenant) == [f"adapters/{adapter['id']}/{name}" for name in sorted(kept)]
    assert tenant.get(f"/v1/adapters/{adapter['id']}").json() == adapter


def test_the_template_beside_an_adapter_is_a_part_of_it(tenant: Tenant) -> None:
    kept = {name: ADAPTER[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    kept["chat_template.jinja"] = b"{{ messages }}"
    adapter = tenant.create("adapter", ADAPTER | kept).json()
    assert stored(tenant) == [f"adapters/{adapter['id']}/{name}" for name in sorted(kept)]
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
    assert adapter["sha256"] == folder_digest(digests)


def test_what_a_trainer_left_beside_an_adapter_is_taken_and_not_kept(tenant: Tenant) -> None:
    beside = (
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "args.json",
    )
    answer = tenant.create("adapter", ADAPTER | dict.fromkeys(beside, b'{"auto_map": "never read"}'))
    assert answer.status_code == 201
    assert stored(tenant) == [
        f"adapters/{answer.json()['id']}/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]


@pytest.mark.parametrize("ending", [*DATASET_ENDINGS, ".JSONL", ".Csv"])
def test_a_data_set_may_have_any_format_that_the_workers_read(tenant: Tenant, ending: str) -> None:
    made = tenant.create("dataset", {f"train{ending}": b"never read here"}).json()
    expected = "jsonl" if ending == ".ndjson" else ending.removeprefix(".").lower()
    assert made["format"] == expected
    assert stored(tenant) == [f"datasets/{made['id']}/data.{expected}"]


def test_a_data_set_is_kept_under_one_name(tenant: Tenant) -> None:
    jsonl = tenant.create("dataset", DATASET).json()
    parquet = tenant.create("dataset", {"Any-Name.parquet": b"PAR1 never read here"}).json()
    assert (jsonl["format"], parquet["format"]) == ("jsonl", "parquet")
    assert jsonl["sha256"] == hashlib.sha256(DATASET["train.jsonl"]).hexdigest()
    assert stored(tenant) == [f"datasets/{jsonl['id']}/data.jsonl", f"datasets/{parquet['id']}/data.parquet"]


def test_a_model_tells_its_architecture(tenant: Tenant) -> None:
    model = tenant.create("model", MODEL).json()
    assert (model["status"], model["source"], model["architecture"]) == (
        "ready",
        "uploaded",
        "LlamaForCausalLM",
    )
    assert stored(tenant) == [f"models/{model['id']}/{name}" for name in sorted(MODEL)]


def test_an_upload_is_used_up(tenant: Tenant) -> None:
    upload_id = tenant.upload("dataset", DATASET)
    body = {"name": "d", "upload_id": upload_id}
    assert tenant.post("/v1/datasets", json=body).status_code == 201
    again = tenant.post("/v1/datasets", json=body)
    assert (again.status_code, again.json()["code"], again.json()["param"]) == (422, "not_found", "upload_id")
    assert tenant.get(f"/v1/uploads/{upload_id}").status_code == 404


def test_of_requests_that_use_one_upload_together_one_gets_it(tenant: Tenant) -> None:
    upload_id = tenant.upload("adapter", ADAPTER)
    body = {"name": "a", "upload_id": upload_id}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: tenant.post("/v1/adapters", json=body), range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 422, 422, 422]
    made = next(answer.json()["id"] for answer in answers if answer.status_code == 201)
    assert {key.split("/")[1] for key in stored(tenant)} == {made}


def test_an_upload_of_another_purpose_or_not_complete_is_refused(tenant: Tenant) -> None:
    upload_id = tenant.upload("dataset", DATASET)
    answer = tenant.post("/v1/adapters", json={"name": "a", "upload_id": upload_id})
    assert (answer.status_code, answer.json()["code"]) == (422, "wrong_purpose")
    pending = tenant.open_upload("dataset", DATASET)["id"]
    answer = tenant.post("/v1/datasets", json={"name": "a", "upload_id": pending})
    assert (answer.status_code, answer.json()["code"]) == (422, "upload_not_completed")


GOOD = ADAPTER["adapter_model.safetensors"]
LENGTH = int.from_bytes(GOOD[:8], "little")


def header(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot hold a header"),
        (GOOD[:5], "cannot hold a header"),
        (GOOD[: LENGTH // 2], "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"\0", "padded"),
        ((2**62).to_bytes(8, "little") + GOOD[8:], "claims"),
        (header(b"not json"), "not valid"),
        (header([1, 2]), "not valid"),
        (header(b"[" * 10_000), "not valid"),
        (header({}), "no tensor"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"\0" * 4, "offsets"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4, "offsets"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"\0" * 8, "offsets"),
        (
            header({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
            "unknown dtype",
        ),
        (
            header(
                {
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
                }
            )
            + b"\0" * 6,
            "offsets",
        ),
    ],
)
def test_damaged_safetensors_are_refused(tenant: Tenant, content: bytes, told: str) -> None:
    answer = tenant.create("adapter", {**ADAPTER, "adapter_model.safetensors": content})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_safetensors")
    assert told in answer.json()["detail"]
    assert tenant.get("/v1/adapters").json()["data"] == []


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (b"", "bad_config"),
        (b"[]", "bad_config"),
        (b"{" * 5000, "bad_config"),
        (b'{"a":' * 100_000, "bad_config"),
        (json.dumps({"peft_type": "IA3"}).encode(), "unsupported_adapter"),
        (json.dumps({}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA"}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA", "r": 0}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA", "r": True}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA", "r": 2, "target_modules": [1]}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA", "r": 2, "target_modules": {}}).encode(), "unsupported_adapter"),
        (json.dumps({"peft_type": "LORA", "r": 2, "auto_map": {"a": "evil.py"}}).encode(), "remote_code"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(tenant: Tenant, config: bytes, code: str) -> None:
    answer = tenant.create("adapter", {**ADAPTER, "adapter_config.json": config})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["param"] == "upload_id"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_model_that_asks_for_remote_code_is_refused(tenant: Tenant, name: str) -> None:
    config = json.dumps({"auto_map": {"AutoModel": "evil--modeling.Evil"}}).encode()
    answer = tenant.create("model", {**MODEL, name: config})
    assert (answer.status_code, answer.json()["code"]) == (422, "remote_code")


def test_an_index_names_only_files_that_were_sent(tenant: Tenant) -> None:
    index = json.dumps({"weight_map": {"weight": "../other.safetensors"}}).encode()
    answer = tenant.create("model", {**MODEL, "model.safetensors.index.json": index})
    assert (answer.status_code, answer.json()["code"]) == (422, "file_missing")


def test_one_bad_shard_refuses_the_model(tenant: Tenant) -> None:
    shards = {
        "model-00001-of-00002.safetensors": tensors("a"),
        "model-00002-of-00002.safetensors": tensors("b")[:-4],
    }
    files = {name: content for name, content in MODEL.items() if name != "model.safetensors"} | shards
    answer = tenant.create("model", files)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_safetensors")
    assert "model-00002" in answer.json()["detail"]


def test_a_refused_upload_can_still_be_deleted(tenant: Tenant) -> None:
    upload_id = tenant.upload("adapter", {**ADAPTER, "adapter_config.json": b"[]"})
    assert tenant.post("/v1/adapters", json={"name": "a", "upload_id": upload_id}).status_code == 422
    assert tenant.delete(f"/v1/uploads/{upload_id}").status_code == 200
    with tenant.deployment.database.read() as session:
        prefixes = [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=10)]
    assert prefixes == [f"projects/{tenant.project_id}/uploads/{upload_id}/"]
