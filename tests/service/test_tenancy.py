"""Nothing of one project can be reached with a key of another: a test over the whole route table.

A route that is not listed here fails `test_every_route_is_covered`.
"""

from __future__ import annotations

from typing import Any

import pytest
from litestar import Litestar

from atomscope_service.app import create_app
from tests.service.bundles import succeeded_audit
from tests.service.deployment import DATASET, Deployment, Tenant

PUBLIC = {"GET /livez", "GET /readyz", "GET /docs", "GET /docs/assets/{name}"}
"""Routes without anything of a project."""
SCHEMA = {"GET /schema", "GET /schema/openapi.json", "GET /schema/{path}"}
SIGNED = {"PUT /v1/uploads/{upload_id}/files/{file}/parts/{part}", "GET /v1/files"}
"""Routes whose URL is the permission; `test_uploads.py` and `test_files.py` forge them."""
LISTS = {
    "GET /v1/uploads",
    "GET /v1/models",
    "GET /v1/adapters",
    "GET /v1/datasets",
    "GET /v1/audits",
    "GET /v1/steered-adapters",
}
KEYS = {"GET /v1/keys"}
"""A list that is never empty: the caller's own key is in it."""
SHARED = {"GET /v1/presets"}
"""Routes that answer every key alike."""
BY_ID = {
    "GET /v1/uploads/{upload_id}",
    "DELETE /v1/uploads/{upload_id}",
    "POST /v1/uploads/{upload_id}/complete",
    "GET /v1/models/{model_id}",
    "DELETE /v1/models/{model_id}",
    "GET /v1/adapters/{adapter_id}",
    "DELETE /v1/adapters/{adapter_id}",
    "GET /v1/datasets/{dataset_id}",
    "DELETE /v1/datasets/{dataset_id}",
    "GET /v1/audits/{audit_id}",
    "DELETE /v1/audits/{audit_id}",
    "DELETE /v1/audits/{audit_id}/gradients",
    "POST /v1/audits/{audit_id}/cancel",
    "GET /v1/audits/{audit_id}/events",
    "GET /v1/audits/{audit_id}/atoms",
    "GET /v1/audits/{audit_id}/atoms/{index}",
    "GET /v1/audits/{audit_id}/atoms/{index}/documents",
    "GET /v1/audits/{audit_id}/atoms/{index}/vector",
    "GET /v1/audits/{audit_id}/behaviours",
    "GET /v1/audits/{audit_id}/behaviours/{index}",
    "GET /v1/audits/{audit_id}/behaviours/{index}/documents",
    "GET /v1/audits/{audit_id}/hierarchy",
    "GET /v1/audits/{audit_id}/refits",
    "POST /v1/audits/{audit_id}/refits",
    "GET /v1/audits/{audit_id}/report",
    "GET /v1/audits/{audit_id}/bundle",
    "GET /v1/audits/{audit_id}/attributions",
    "POST /v1/audits/{audit_id}/attributions",
    "GET /v1/audits/{audit_id}/attributions/{attribution_id}",
    "DELETE /v1/audits/{audit_id}/attributions/{attribution_id}",
    "GET /v1/audits/{audit_id}/evaluations",
    "POST /v1/audits/{audit_id}/evaluations",
    "GET /v1/audits/{audit_id}/evaluations/{evaluation_id}",
    "DELETE /v1/audits/{audit_id}/evaluations/{evaluation_id}",
    "GET /v1/steered-adapters/{steered_id}",
    "DELETE /v1/steered-adapters/{steered_id}",
    "GET /v1/steered-adapters/{steered_id}/download",
    "GET /v1/keys/{key_id}",
    "DELETE /v1/keys/{key_id}",
}
BY_BODY = {
    "POST /v1/uploads",
    "POST /v1/models",
    "POST /v1/adapters",
    "POST /v1/datasets",
    "POST /v1/audits",
    "POST /v1/steered-adapters",
    "POST /v1/keys",
}
"""Routes that make something; those whose body names ids are tried with ids of another project."""


def routes(app: Litestar) -> set[str]:
    """`METHOD /path` of every handler, `HEAD` and the automatic `OPTIONS` aside."""
    return {
        f"{method} {route.path_format}"
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in {"HEAD", "OPTIONS"}
    }


@pytest.fixture(scope="module")
def owned(deployment: Deployment, client: Any) -> dict[str, str]:
    """Ids of one of everything, of a project that the others know nothing of."""
    owner = Tenant(deployment, client)
    inputs = owner.make_inputs()
    audit_id = succeeded_audit(owner)
    steered = owner.post("/v1/steered-adapters", json={"audit": audit_id, "strengths": {"1": 0.5}})
    assert steered.status_code == 201, steered.text
    attribution = owner.post(f"/v1/audits/{audit_id}/attributions", json=QUERY)
    assert attribution.status_code == 202, attribution.text
    evaluation = owner.post(f"/v1/audits/{audit_id}/evaluations", json=EVALUATION)
    assert evaluation.status_code == 202, evaluation.text
    return {
        "upload_id": owner.upload("dataset", DATASET),
        "model_id": inputs["base_model"],
        "adapter_id": inputs["adapter"],
        "dataset_id": inputs["dataset"],
        "audit_id": audit_id,
        "index": "1",
        "steered_id": steered.json()["id"],
        "attribution_id": attribution.json()["id"],
        "evaluation_id": evaluation.json()["id"],
        "key_id": owner.get("/v1/keys").json()["data"][0]["id"],
        "owner_key": owner.key,
    }


def fill(route: str, values: dict[str, str]) -> tuple[str, str]:
    method, _, path = route.partition(" ")
    return method, path.format_map({"file": "0", "part": "1", "name": "docs.js", "path": "x", **values})


QUERY = {"prompt": "a", "completion": "b"}
EVALUATION = {"targets": [{"target": "1"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/complete": {"files": []},
    "/attributions": QUERY,
    "/evaluations": EVALUATION,
    "/refits": {},
}
"""By the end of its path, what a `POST` to a thing by id takes."""


def body_of(method: str, path: str) -> dict[str, Any] | None:
    return BODIES.get(f"/{path.rpartition('/')[2]}") if method == "POST" else None


def test_every_route_is_covered(deployment: Deployment) -> None:
    covered = PUBLIC | SCHEMA | SIGNED | LISTS | KEYS | SHARED | BY_ID | BY_BODY
    assert routes(deployment.app) == covered


def test_a_route_that_nobody_listed_would_be_noticed(deployment: Deployment) -> None:
    from litestar import get

    @get("/v1/forgotten", sync_to_thread=False)
    def forgotten() -> None: ...

    app = create_app(deployment.settings, deployment.queue)
    app.register(forgotten)
    assert "GET /v1/forgotten" in routes(app)


@pytest.mark.parametrize("route", sorted(BY_ID))
def test_an_id_of_another_project_answers_404(route: str, owned: dict[str, str], other: Tenant) -> None:
    method, path = fill(route, owned)
    answer = other.request(method, path, json=body_of(method, path))
    assert answer.status_code == 404
    never_was = {**owned, **{name: value[:-4] + "0000" for name, value in owned.items() if "_" in value}}
    method, path = fill(route, never_was)
    unknown = other.request(method, path, json=body_of(method, path))
    # Word for word the answer for an id that never was: existence does not leak.
    same = ("status", "code", "detail", "title", "param", "errors")
    assert {name: answer.json()[name] for name in same} == {name: unknown.json()[name] for name in same}


@pytest.mark.parametrize("route", sorted(route for route in BY_ID if route.startswith("GET ")))
def test_the_owner_is_not_refused(route: str, owned: dict[str, str], client: Any) -> None:
    method, path = fill(route, owned)
    answer = client.request(method, path, headers={"Authorization": f"Bearer {owned['owner_key']}"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("route", sorted(LISTS))
def test_lists_hold_nothing_of_another_project(route: str, owned: dict[str, str], other: Tenant) -> None:
    assert other.get(route.partition(" ")[2]).json() == {"data": [], "has_more": False, "next": None}


def test_a_project_lists_its_own_keys_only(owned: dict[str, str], other: Tenant) -> None:
    keys = other.get("/v1/keys").json()["data"]
    assert len(keys) == 1
    assert keys[0]["id"] != owned["key_id"]


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/models", {"name": "x", "upload_id": "{upload_id}"}, "upload_id"),
        ("/v1/adapters", {"name": "x", "upload_id": "{upload_id}"}, "upload_id"),
        ("/v1/datasets", {"name": "x", "upload_id": "{upload_id}"}, "upload_id"),
        ("/v1/steered-adapters", {"audit": "{audit_id}", "strengths": {"1": 1.0}}, "audit"),
    ],
)
def test_a_body_cannot_name_an_id_of_another_project(
    route: str, body: dict[str, Any], param: str, owned: dict[str, str], other: Tenant
) -> None:
    filled = {
        name: value.format_map(owned) if isinstance(value, str) else value for name, value in body.items()
    }
    answer = other.post(route, json=filled)
    assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (422, "not_found", param)


@pytest.mark.parametrize("foreign", ["base_model", "adapter", "dataset"])
def test_an_audit_cannot_mix_inputs_of_two_projects(
    foreign: str, owned: dict[str, str], other: Tenant
) -> None:
    theirs = {"base_model": "model_id", "adapter": "adapter_id", "dataset": "dataset_id"}
    body = other.make_inputs() | {foreign: owned[theirs[foreign]]}
    answer = other.post("/v1/audits", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (422, "not_found", foreign)


def test_a_cursor_of_another_project_is_refused(tenant: Tenant, other: Tenant) -> None:
    for _ in range(2):
        tenant.post("/v1/keys", json={"name": "k"})
    cursor = tenant.get("/v1/keys?limit=1").json()["next"]
    assert tenant.get(f"/v1/keys?limit=1&cursor={cursor}").status_code == 200
    assert other.get(f"/v1/keys?limit=1&cursor={cursor}").json()["code"] == "invalid_cursor"


def test_idempotency_keys_of_two_projects_do_not_meet(tenant: Tenant, other: Tenant) -> None:
    headers = {"Idempotency-Key": "the same"}
    mine = tenant.post("/v1/keys", json={"name": "mine"}, headers=headers)
    theirs = other.post("/v1/keys", json={"name": "theirs"}, headers=headers)
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert theirs.json()["name"] == "theirs"


@pytest.mark.parametrize("route", sorted(LISTS | KEYS | SHARED | BY_ID | BY_BODY))
@pytest.mark.parametrize("authorization", [None, "Bearer ask_" + "A" * 43, "Bearer nonsense", "Basic YTpi"])
def test_every_route_needs_a_valid_key(
    route: str, authorization: str | None, owned: dict[str, str], client: Any
) -> None:
    method, path = fill(route, owned)
    headers = {"Authorization": authorization} if authorization else {}
    answer = client.request(method, path, headers=headers, json={} if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthenticated"


@pytest.mark.parametrize("route", sorted(PUBLIC | {"GET /schema/openapi.json"}))
def test_public_routes_need_none(route: str, client: Any) -> None:
    _, path = fill(route, {})
    assert client.get(path).status_code == 200
