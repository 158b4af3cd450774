"""What an audit found: atoms, documents, vectors, report, bundle, and adapters steered by it."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import pytest
from litestar.testing import TestClient
from safetensors.numpy import load

from atomscope.bundle import layout
from atomscope.types.bundle import Manifest
from atomscope_service.db.models import AuditRow
from atomscope_service.db.repositories import Repositories
from tests.service.bundles import ESCAPES, HIERARCHY, succeeded_audit, vector
from tests.service.deployment import ADAPTER, Deployment, Tenant


@pytest.fixture(scope="module")
def owner(deployment: Deployment, client: TestClient) -> Tenant:
    return Tenant(deployment, client)


@pytest.fixture(scope="module")
def audit(owner: Tenant) -> str:
    """URL of an audit that has succeeded: atoms 1, 2, 0 by rank."""
    return f"/v1/audits/{succeeded_audit(owner)}"


def indices(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [atom["index"] for atom in answer.json()["data"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 2, 0]),
        ("?sort=-rank", [0, 2, 1]),
        ("?sort=coherence", [0, 2, 1]),
        ("?sort=-coherence", [1, 2, 0]),
        ("?sort=n_active", [0, 1, 2]),
        ("?sort=-n_active", [2, 1, 0]),
        ("?sort=mean_coefficient", [2, 1, 0]),
        ("?sort=-mean_coefficient", [0, 1, 2]),
        ("?min_coherence=0.5", [1, 2]),
        ("?min_active=6", [1, 2]),
        ("?keyword=WORD2", [2]),
        ("?keyword=word", []),
        ("?keyword=alpha&min_active=7", [2]),
    ],
)
def test_atoms_are_sorted_and_filtered(owner: Tenant, audit: str, query: str, expected: list[int]) -> None:
    assert indices(owner.get(f"{audit}/atoms{query}")) == expected


def test_atoms_are_walked_by_cursor(owner: Tenant, audit: str) -> None:
    first = owner.get(f"{audit}/atoms?limit=2&sort=-rank")
    assert indices(first) == [0, 2]
    second = owner.get(f"{audit}/atoms?limit=2&sort=-rank&cursor={first.json()['next']}")
    assert indices(second) == [1]
    assert second.json()["next"] is None
    other_sort = owner.get(f"{audit}/atoms?limit=2&cursor={first.json()['next']}")
    assert other_sort.json()["code"] == "invalid_cursor"


@pytest.mark.parametrize(
    "query",
    [
        "sort=index",
        "min_coherence=much",
        "min_coherence=-1.5",
        "min_coherence=2",
        "min_active=1.5",
        "min_active=-1",
        "keyword=" + "x" * 201,
    ],
)
def test_bad_filters_are_refused(owner: Tenant, audit: str, query: str) -> None:
    answer = owner.get(f"{audit}/atoms?{query}")
    assert (answer.status_code, answer.json()["param"]) == (400, query.split("=", maxsplit=1)[0])


def test_one_atom_is_named_by_its_index(owner: Tenant, audit: str) -> None:
    answer = owner.get(f"{audit}/atoms/2")
    assert (answer.json()["index"], answer.json()["rank"], answer.json()["coherence"]) == (2, 2, 0.5)
    etag = answer.headers["ETag"]
    assert owner.get(f"{audit}/atoms/2", headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize("index", ["3", "99999999999999999999", "9" * 5000, "-1", "x"])
@pytest.mark.parametrize("rest", ["", "/documents", "/vector"])
def test_there_is_no_such_atom(owner: Tenant, audit: str, index: str, rest: str) -> None:
    assert owner.get(f"{audit}/atoms/{index}{rest}").status_code in {400, 404}


def test_documents_come_with_their_text_strongest_first(owner: Tenant, audit: str) -> None:
    page = owner.get(f"{audit}/atoms/1/documents?limit=4").json()
    assert [match["document"] for match in page["data"]] == [0, 1, 2, 3]
    assert [round(match["value"], 6) for match in page["data"]] == [1.0, 0.9, 0.8, 0.7]
    assert page["data"][0]["messages"][1] == {"role": "assistant", "content": ESCAPES}
    assert (page["data"][0]["id"], page["data"][0]["n_tokens"], page["data"][0]["loss"]) == ("doc-0", 10, 1.5)
    rest = owner.get(f"{audit}/atoms/1/documents?limit=4&cursor={page['next']}").json()
    assert [match["document"] for match in rest["data"]] == [4, 5, 6]
    assert not rest["has_more"]


def test_documents_of_the_other_sign_are_apart_and_inactive_ones_left_out(owner: Tenant, audit: str) -> None:
    matches = owner.get(f"{audit}/atoms/1/documents?sign=negative").json()["data"]
    assert [(match["document"], match["value"]) for match in matches] == [(7, -0.5)]


def test_behaviours_are_listed_by_rank_without_their_documents(owner: Tenant, audit: str) -> None:
    first = owner.get(f"{audit}/behaviours?limit=1").json()
    assert [item["index"] for item in first["data"]] == [1]
    assert first["data"][0]["documents"] == []
    rest = owner.get(f"{audit}/behaviours?cursor={first['next']}").json()
    assert [item["index"] for item in rest["data"]] == [0]
    assert rest["has_more"] is False


@pytest.mark.parametrize(("sort", "indices"), [("-rank", [0, 1]), ("share", [0, 1]), ("-share", [1, 0])])
def test_behaviours_sort_and_a_cursor_is_of_one_order(
    owner: Tenant, audit: str, sort: str, indices: list[int]
) -> None:
    first = owner.get(f"{audit}/behaviours?limit=1&sort={sort}").json()
    rest = owner.get(f"{audit}/behaviours?sort={sort}&cursor={first['next']}").json()
    assert [item["index"] for item in first["data"] + rest["data"]] == indices
    assert owner.get(f"{audit}/behaviours?cursor={first['next']}").status_code == 400
    assert owner.get(f"{audit}/behaviours?sort=n_active").status_code == 400


def test_one_behaviour_is_named_by_its_index(owner: Tenant, audit: str) -> None:
    answer = owner.get(f"{audit}/behaviours/1")
    assert (answer.json()["rank"], answer.json()["n_documents"]) == (1, 3)
    again = owner.get(f"{audit}/behaviours/1", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    for path in ("behaviours/7", "behaviours/7/documents"):
        assert owner.get(f"{audit}/{path}").status_code == 404


def test_the_tree_over_the_atoms_is_read_whole(owner: Tenant, audit: str) -> None:
    answer = owner.get(f"{audit}/hierarchy")
    assert answer.json() == msgspec.to_builtins(HIERARCHY)
    again = owner.get(f"{audit}/hierarchy", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_an_audit_of_before_the_tree_was_kept_says_so(owner: Tenant) -> None:
    audit_id = succeeded_audit(owner)
    store = owner.deployment.store
    path = f"{layout.bundle_prefix(owner.project_id, audit_id, 1, 1)}{layout.MANIFEST}"
    manifest = msgspec.json.decode(store.get_bytes(path), type=Manifest)
    files = [entry for entry in manifest.files if entry.path != layout.HIERARCHY]
    store.put_bytes(path, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    answer = owner.get(f"/v1/audits/{audit_id}/hierarchy")
    assert (answer.status_code, answer.json()["code"]) == (409, "old_bundle")
    assert "audit again" in answer.json()["detail"]
    assert owner.get(f"/v1/audits/{audit_id}/behaviours").status_code == 200


def test_documents_of_a_behaviour_come_strongest_first_with_their_strength(owner: Tenant, audit: str) -> None:
    page = owner.get(f"{audit}/behaviours/1/documents?limit=2").json()
    assert [(item["document"], item["value"]) for item in page["data"]] == [(4, 1.0), (2, 0.9)]
    assert page["data"][0]["messages"][0]["content"] == "question 4"
    rest = owner.get(f"{audit}/behaviours/1/documents?cursor={page['next']}").json()
    assert [item["document"] for item in rest["data"]] == [9]


def test_a_vector_is_the_bundles_own_file(owner: Tenant, audit: str) -> None:
    answer = owner.get(f"{audit}/atoms/1/vector")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert answer.content == vector(1)
    again = owner.get(f"{audit}/atoms/1/vector", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_report_is_read_once_and_conditional(owner: Tenant, audit: str) -> None:
    answer = owner.get(f"{audit}/report")
    assert (answer.json()["n_atoms"], answer.json()["atoms"][0]["index"]) == (3, 1)
    headers = {"If-None-Match": answer.headers["ETag"]}
    assert owner.get(f"{audit}/report", headers=headers).status_code == 304


def test_a_bundle_downloads_whole_without_a_key(owner: Tenant, audit: str) -> None:
    listing = owner.get(f"{audit}/bundle").json()
    assert listing["files"][0]["path"] == "manifest.json"
    assert listing["size"] == sum(file["size"] for file in listing["files"])
    manifest = json.loads(owner.http.get(listing["files"][0]["url"]).content)
    assert [file["path"] for file in listing["files"][1:]] == [file["path"] for file in manifest["files"]]
    for file in listing["files"]:
        content = owner.http.get(file["url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])


@pytest.mark.parametrize("status", ["queued", "running", "canceling", "failed", "canceled"])
@pytest.mark.parametrize(
    "rest", ["atoms", "atoms/0", "atoms/0/documents", "atoms/0/vector", "report", "bundle"]
)
def test_there_are_no_findings_before_success(tenant: Tenant, status: str, rest: str) -> None:
    answer = tenant.get(f"/v1/audits/{tenant.insert_audit(status=status)}/{rest}")
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_succeeded")


def test_a_damaged_bundle_is_told_as_such(tenant: Tenant) -> None:
    audit_id = succeeded_audit(tenant)
    with tenant.deployment.database.read() as session:
        prefix = session.get_one(AuditRow, audit_id).bundle_prefix
    tenant.deployment.store.put_bytes(f"{prefix}atoms/atoms.json", b"[")
    answer = tenant.get(f"/v1/audits/{audit_id}/atoms")
    assert (answer.status_code, answer.json()["code"]) == (500, "bundle_damaged")
    assert str(prefix) not in answer.text


# --------------------------------------------------------------------- steering


def steer(owner: Tenant, audit: str, strengths: dict[str, float], **rest: Any) -> Any:
    body = {"audit": audit.rpartition("/")[2], "strengths": strengths, **rest}
    return owner.post("/v1/steered-adapters", json=body)


def test_a_steered_adapter_is_the_adapter_plus_its_vectors(owner: Tenant, audit: str) -> None:
    answer = steer(owner, audit, {"1": 0.5, "2": -0.25}, name="less")
    assert answer.status_code == 201
    steered = answer.json()
    assert answer.headers["Location"] == f"/v1/steered-adapters/{steered['id']}"
    assert (steered["strengths"], steered["name"]) == ({"1": 0.5, "2": -0.25}, "less")
    download = owner.get(f"/v1/steered-adapters/{steered['id']}/download").json()
    files = {file["path"]: owner.http.get(file["url"]).content for file in download["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert steered["size"] == sum(len(content) for content in files.values())
    assert files["adapter_config.json"] == ADAPTER["adapter_config.json"]

    def length(tensors: dict[str, Any]) -> float:
        return float(np.sqrt(sum((tensor.astype(np.float64) ** 2).sum() for tensor in tensors.values())))

    base, moved = load(ADAPTER["adapter_model.safetensors"]), load(files["adapter_model.safetensors"])
    one, two = load(vector(1)), load(vector(2))
    for name, tensor in base.items():
        step = 0.5 * one[name] / length(one) - 0.25 * two[name] / length(two)
        np.testing.assert_allclose(
            moved[f"base_model.model.{name}"], tensor + length(base) * step, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("strengths", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"1": "0.5"}, 400, "invalid_request"),
        ({"7": 1.0}, 422, "not_found"),
        ({"one": 1.0}, 422, "not_found"),
        ({"01": 1.0}, 422, "not_found"),
        ({"-1": 1.0}, 422, "not_found"),
        ({"²": 1.0}, 422, "not_found"),
        ({"1" * 5000: 1.0}, 422, "not_found"),
        ({"1": 1e300}, 422, "strength_too_large"),
        ({"1": 1.0, "atom:1": 2.0}, 422, "cannot_steer"),
        ({"behaviour:7": 1.0}, 422, "not_found"),
        ({"behavior:1": 1.0}, 422, "not_found"),
        ({str(number): 1.0 for number in range(101)}, 400, "invalid_request"),
    ],
)
def test_strengths_that_cannot_be_met_are_refused(
    owner: Tenant, audit: str, strengths: dict[str, Any], status: int, code: str
) -> None:
    answer = steer(owner, audit, strengths)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["param"].startswith("strengths")


def test_a_behaviour_is_turned_up_by_its_atoms_and_a_vector_says_so(owner: Tenant, audit: str) -> None:
    answer = steer(owner, audit, {"behaviour:1": 2.0}, format="vector", unit="alpha")
    assert answer.status_code == 201, answer.text
    steered = answer.json()
    assert (steered["strengths"], steered["format"]) == ({"behaviour:1": 2.0}, "vector")
    assert (steered["unit"], steered["power"]) == ("alpha", None)
    assert owner.get(f"/v1/steered-adapters/{steered['id']}").json() == steered
    download = owner.get(f"/v1/steered-adapters/{steered['id']}/download").json()
    files = {file["path"]: owner.http.get(file["url"]).content for file in download["files"]}
    assert set(files) == {"steering_vector.safetensors", "atomscope_steering.json"}
    # Its documents 4, 2 and 9 have the codes 0.6, 0.8 and none on its only atom, 1.
    step, one = load(files["steering_vector.safetensors"]), load(vector(1))
    for name, tensor in one.items():
        wanted = 2.0 * (0.6 + 0.8) / 3 * tensor
        np.testing.assert_allclose(step[f"base_model.model.{name}"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"format": "onnx"}, 400, "invalid_request"),
        ({"unit": "percent"}, 400, "invalid_request"),
        ({"power": "1/2"}, 400, "invalid_request"),
        ({"format": "gguf"}, 422, "cannot_steer"),
        ({"format": "delta"}, 422, "cannot_steer"),
    ],
)
def test_what_cannot_be_written_for_the_adapter_or_its_base_is_refused(
    owner: Tenant, audit: str, how: dict[str, Any], status: int, code: str
) -> None:
    answer = steer(owner, audit, {"1": 0.1}, **how)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_only_an_audit_that_succeeded_steers(tenant: Tenant) -> None:
    answer = steer(tenant, f"/v1/audits/{tenant.insert_audit(status='failed')}", {"1": 1.0})
    assert (answer.status_code, answer.json()["code"]) == (409, "audit_not_succeeded")


def test_a_steered_adapter_outlives_its_audit(tenant: Tenant) -> None:
    audit_id = succeeded_audit(tenant)
    steered = steer(tenant, audit_id, {"0": 1.0}).json()
    assert tenant.delete(f"/v1/audits/{audit_id}").status_code == 200
    assert tenant.get(f"/v1/audits/{audit_id}/atoms").status_code == 404
    assert tenant.get(f"/v1/steered-adapters/{steered['id']}/download").status_code == 200
    assert tenant.get("/v1/steered-adapters").json()["data"] == [steered]
    assert tenant.delete(f"/v1/steered-adapters/{steered['id']}").status_code == 200
    assert tenant.get(f"/v1/steered-adapters/{steered['id']}").status_code == 404
    with tenant.deployment.database.read() as session:
        prefixes = [row.prefix for row in Repositories(session, tenant.project_id).deletions.page(limit=10)]
    assert f"projects/{tenant.project_id}/steered/{steered['id']}/" in prefixes


# -------------------------------------------------------------- signed downloads


@pytest.fixture(scope="module")
def link(owner: Tenant, audit: str) -> str:
    """URL of the vector of atom 1."""
    files = owner.get(f"{audit}/bundle").json()["files"]
    return next(file["url"] for file in files if file["path"] == "vectors/0001.safetensors")


def test_a_link_opens_its_own_file_only(owner: Tenant, link: str) -> None:
    query = parse_qs(urlsplit(link).query)
    other_key = link.replace("vectors%2F0001", "vectors%2F0002")
    assert other_key != link
    later = link.replace(f"expires={query['expires'][0]}", f"expires={int(query['expires'][0]) + 60}")
    for forged in (other_key, later, link[:-4] + "AAAA"):
        answer = owner.http.get(forged)
        assert (answer.status_code, answer.json()["code"]) == (403, "bad_signature")


def test_a_link_expires(owner: Tenant, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expires = int(parse_qs(urlsplit(link).query)["expires"][0])
    monkeypatch.setattr("atomscope_service.uploads.links.time.time", lambda: expires + 1)
    assert owner.http.get(link).json()["code"] == "link_expired"


SIZE = len(vector(1))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=10-", 10, SIZE - 1),
        ("bytes=-7", SIZE - 7, SIZE - 1),
        (f"bytes=5-{SIZE + 100}", 5, SIZE - 1),
        (f"bytes=-{SIZE + 100}", 0, SIZE - 1),
    ],
)
def test_a_range_gives_exactly_its_bytes(owner: Tenant, link: str, asked: str, first: int, last: int) -> None:
    answer = owner.http.get(link, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.content == vector(1)[first : last + 1]


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,3-4", "lines=0-1", "bytes=-", "bytes=x-y"])
def test_other_ranges_are_ignored(owner: Tenant, link: str, asked: str) -> None:
    answer = owner.http.get(link, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, vector(1))
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0"])
def test_a_range_outside_of_the_file_is_told(owner: Tenant, link: str, asked: str) -> None:
    answer = owner.http.get(link, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


def test_a_link_to_a_file_that_is_gone_is_not_found(tenant: Tenant) -> None:
    audit_id = succeeded_audit(tenant)
    url = tenant.get(f"/v1/audits/{audit_id}/bundle").json()["files"][-1]["url"]
    tenant.deployment.store.delete_prefix(f"projects/{tenant.project_id}/")
    assert tenant.http.get(url).status_code == 404
