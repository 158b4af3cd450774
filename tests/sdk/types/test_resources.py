"""Requests of the API are strict, its answers lenient: a newer service may say more to an older client."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from atomscope.types import inputs, resources
from atomscope.types.inputs import DatasetCreate, ModelCreate, UploadCreate
from atomscope.types.resources import TERMINAL, Audit, AuditStatus, Deleted, Page, SteeredAdapterCreate

STRUCTS = {
    name: kind
    for module in (inputs, resources)
    for name, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
}
REQUESTS = {name for name in STRUCTS if name.endswith("Create")} | {
    "UploadComplete", "CompletedFile", "CompletedPart", "UploadFileSpec",
}  # fmt: skip
FILE = {"path": "data.jsonl", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize("name", STRUCTS)
def test_requests_refuse_unknown_fields_and_answers_pass_them_over(name: str) -> None:
    assert STRUCTS[name].__struct_config__.forbid_unknown_fields == (name in REQUESTS)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (UploadCreate, {"purpose": "model", "files": []}),
        (UploadCreate, {"purpose": "model", "files": [FILE] * 201}),
        (UploadCreate, {"purpose": "script", "files": [FILE]}),
        (UploadCreate, {"purpose": "model", "files": [FILE | {"size": -1}]}),
        (UploadCreate, {"purpose": "model", "files": [FILE | {"path": ""}]}),
        (UploadCreate, {"purpose": "model", "files": [FILE | {"path": "a" * 256}]}),
        (UploadCreate, {"purpose": "model", "files": [FILE | {"sha256": "A" * 64}]}),
        (DatasetCreate, {"name": "", "upload_id": "upl_1"}),
        (DatasetCreate, {"name": "a" * 201, "upload_id": "upl_1"}),
        (ModelCreate, {"name": "m", "hub_id": "owner"}),
        (ModelCreate, {"name": "m", "hub_id": "../owner/name"}),
        (ModelCreate, {"name": "m", "hub_id": "owner/name", "revision": "main"}),
        (SteeredAdapterCreate, {"audit": "aud_1", "strengths": {}}),
        (SteeredAdapterCreate, {"audit": "aud_1", "strengths": {str(n): 0.1 for n in range(101)}}),
    ],
)
def test_a_request_out_of_bounds_is_refused(kind: type[Any], body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, kind)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (UploadCreate, {"purpose": "dataset", "files": [FILE] * 200}),
        (ModelCreate, {"name": "m", "upload_id": "upl_1"}),
        (ModelCreate, {"name": "m" * 200, "hub_id": "owner/name-1.0", "revision": "0" * 40}),
        (SteeredAdapterCreate, {"audit": "aud_1", "strengths": {"3": -0.1}}),
    ],
)
def test_a_request_within_bounds_is_taken(kind: type[Any], body: dict[str, Any]) -> None:
    taken = msgspec.to_builtins(msgspec.convert(body, kind))
    assert {name: taken[name] for name in body} == body


def test_an_audit_ends_in_one_of_three_ways() -> None:
    statuses = set(AuditStatus.__args__)  # type: ignore[attr-defined]
    assert statuses - TERMINAL == {"queued", "running", "canceling"}
    assert statuses >= TERMINAL


def test_a_page_of_a_newer_service_is_read() -> None:
    page = msgspec.convert(
        {"data": [{"id": "aud_1", "deleted": True, "note": 1}], "has_more": False, "total": 1}, Page[Deleted]
    )
    assert (page.data, page.has_more, page.next) == ([Deleted(id="aud_1")], False, None)


def test_a_resource_says_what_it_is() -> None:
    named = {
        name: kind.__struct_defaults__[-1]
        for name, kind in STRUCTS.items()
        if "object" in kind.__struct_fields__
    }
    assert named["Audit"] == "audit"
    assert named["SteeredAdapter"] == "steered_adapter"
    assert len(set(named.values())) == len(named)
    assert set(Audit.__struct_fields__) >= {"id", "status", "config", "error", "warnings"}
