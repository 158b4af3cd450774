"""What every route has in common: problems, request ids, bodies, cursors, ETags, OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient
from openapi_spec_validator import validate
from sqlalchemy.exc import OperationalError

from atomscope.store import StoreError
from atomscope_service.app import create_app
from tests.service.deployment import BASE_URL, Deployment, Tenant


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "param", "errors"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:atomscope:problem:{code}"
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    return problem


# ------------------------------------------------------------------ problems


def test_unknown_paths_and_methods_are_problems(client: TestClient, tenant: Tenant) -> None:
    assert_problem(client.get("/nowhere"), 404, "not_found")
    assert_problem(client.get("/v1/nowhere"), 404, "not_found")
    answer = tenant.request("PATCH", "/v1/models")
    assert_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b'{"name": "a\xff"}', "body"),
        (b'{"na\xffme": "a"}', "body"),
        (b'{"name": 5}', "name"),
        (b'{"name": "5", "extra": 1}', "extra"),
        (b"{}", "name"),
        (b'{"name": ""}', "name"),
        (b'{"name": "%s"}' % (b"x" * 201), "name"),
        (b'{"name": "a\\u0000b"}', "body"),
        (b"[" * 20_000, "body"),
        (b'{"name": "a", "name": "b"}', "body"),
    ],
)
def test_a_bad_body_names_the_field(tenant: Tenant, body: bytes, field: str) -> None:
    problem = assert_problem(tenant.post("/v1/keys", content=body), 400, "invalid_request")
    assert [fault["field"] for fault in problem["errors"]] == [field]
    assert problem["param"] == field


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"components": 0}, "config.components"),
        ({"components": "50"}, "config.components"),
        ({"componentz": 1}, "config.componentz"),
        ({"dtype": "float8"}, "config.dtype"),
        ({"seed": 2**32}, "config.seed"),
        (5, "config"),
        ({"solver": "sklearn"}, "config"),
    ],
)
def test_a_bad_audit_config_names_the_setting(tenant: Tenant, config: object, field: str) -> None:
    body = {"base_model": "m", "adapter": "a", "dataset": "d", "config": config}
    problem = assert_problem(tenant.post("/v1/audits", json=body), 400, "invalid_request")
    assert problem["param"] == field


def test_a_word_that_is_no_choice_is_answered_with_the_choices(tenant: Tenant) -> None:
    body = {"base_model": "m", "adapter": "a", "dataset": "d", "config": {"solver": "pt"}}
    problem = assert_problem(tenant.post("/v1/audits", json=body), 400, "invalid_request")
    assert "one of 'sklearn', 'torch' is expected" in problem["errors"][0]["message"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limt=5", "limt"),
        ("limit=1&limit=2", "limit"),
        ("limit=1&status=failed&limit=1", "limit"),
        ("status=", "status"),
        ("status=succeeded&colour=red", "colour"),
    ],
)
def test_bad_and_unknown_query_parameters_are_refused(tenant: Tenant, query: str, param: str) -> None:
    problem = assert_problem(tenant.get(f"/v1/audits?{query}"), 400, "invalid_request")
    assert problem["param"] == param


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tenant: Tenant, value: str) -> None:
    answer = tenant.get(f"/v1/audits/aud_0/atoms?min_coherence={value}")
    problem = assert_problem(answer, 400, "invalid_request")
    assert (problem["param"], problem["detail"][:14]) == ("min_coherence", "min_coherence:")


@pytest.mark.parametrize("row_id", ["aud_0", "x" * 5000, "%00", "..%2f..%2fetc", "%ff", "aud_%F0%9F%92%A9"])
def test_odd_ids_are_simply_not_found(tenant: Tenant, row_id: str) -> None:
    assert_problem(tenant.get(f"/v1/audits/{row_id}"), 404, "not_found")


def test_a_body_over_the_limit_is_refused(tenant: Tenant) -> None:
    big = b'{"name": "' + b"x" * (1024 * 1024) + b'"}'
    assert_problem(tenant.post("/v1/keys", content=big), 413, "body_too_large")
    with_key = {"Idempotency-Key": "big"}
    assert_problem(tenant.post("/v1/keys", content=big, headers=with_key), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    assert_problem(tenant.post("/v1/keys", content=chunks()), 413, "body_too_large")
    assert tenant.get("/v1/keys").json()["data"][0]["name"] == "test key"


@pytest.fixture
def broken(deployment: Deployment) -> Iterator[Tenant]:
    app = create_app(deployment.settings, deployment.queue)
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as http:
        yield Tenant(deployment, http)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (RuntimeError("password=hunter2"), 500, "internal_error"),
        (StoreError("s3://hunter2 refused"), 503, "store_unavailable"),
        (OperationalError("SELECT hunter2", {}, Exception("hunter2")), 503, "database_unavailable"),
    ],
)
def test_a_failure_inside_leaks_nothing(
    broken: Tenant, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int, code: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("atomscope_service.api.audits.list_rows", fail)
    answer = broken.get("/v1/audits")
    assert_problem(answer, status, code)
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text


# --------------------------------------------------------------- request ids


def test_a_clients_own_request_id_is_kept(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "My-id_7"}).headers["X-Request-Id"] == "My-id_7"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "ü".encode()])
def test_a_malformed_request_id_is_replaced(client: TestClient, given: str | bytes) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": given})
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["X-Request-Id"])


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/models", "/schema/openapi.json", "/docs"])
def test_every_answer_has_an_id_and_a_policy(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Request-Id"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


# -------------------------------------------------------------------- lists


def test_a_list_is_walked_by_its_cursors(tenant: Tenant) -> None:
    made = [tenant.post("/v1/keys", json={"name": f"k{number}"}).json()["id"] for number in range(5)]
    seen: list[str] = []
    url = "/v1/keys?limit=2"
    cursor = ""
    while True:
        page = tenant.get(url + cursor).json()
        seen += [key["id"] for key in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next']}"
    assert seen[:5] == made[::-1]
    assert len(seen) == 6


@pytest.mark.parametrize("change", ["cut", "flip", "junk", "other list", "other filter"])
def test_a_cursor_that_this_list_did_not_give_is_refused(tenant: Tenant, change: str) -> None:
    for _ in range(2):
        tenant.insert_audit()
    cursor = tenant.get("/v1/audits?limit=1").json()["next"]
    url, given = "/v1/audits", cursor
    match change:
        case "cut":
            given = cursor[:-3]
        case "flip":
            given = ("A" if cursor[0] != "A" else "B") + cursor[1:]
        case "junk":
            given = "%C3%BC"
        case "other list":
            url = "/v1/models"
        case _:
            url = "/v1/audits?status=queued"
    joined = f"{url}{'&' if '?' in url else '?'}cursor={given}"
    assert_problem(tenant.get(joined), 400, "invalid_cursor")


# -------------------------------------------------------------------- ETags


def test_a_read_is_conditional(tenant: Tenant) -> None:
    audit_id = tenant.insert_audit()
    first = tenant.get(f"/v1/audits/{audit_id}")
    etag = first.headers["ETag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = tenant.get(f"/v1/audits/{audit_id}", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert tenant.get(f"/v1/audits/{audit_id}", headers={"If-None-Match": '"other"'}).json() == first.json()
    tenant.post(f"/v1/audits/{audit_id}/cancel")
    changed = tenant.get(f"/v1/audits/{audit_id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != etag


# ------------------------------------------------------------------- OpenAPI


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/schema/openapi.json").json()


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in {"get", "post", "put", "delete", "patch"}
    ]


def test_every_operation_is_named_told_and_ends_in_problems(document: dict[str, Any]) -> None:
    found = operations(document)
    names = [operation["operationId"] for _, operation in found]
    assert len(names) == len(set(names)) > 30
    for route, operation in found:
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", operation["operationId"]), route
        assert operation["summary"], route
        assert operation["tags"], route
        content = operation["responses"]["default"]["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, route
        assert "400" not in operation["responses"], route


def test_keys_are_asked_for_everywhere_but_on_public_routes(document: dict[str, Any]) -> None:
    assert document["security"] == [{"key": []}]
    open_routes = {route for route, operation in operations(document) if operation.get("security") == []}
    assert open_routes == {
        "GET /livez",
        "GET /readyz",
        "GET /v1/files",
        "PUT /v1/uploads/{upload_id}/files/{file}/parts/{part}",
    }


def test_bodies_are_the_shared_types(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["AuditCreate"]
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"base_model", "adapter", "dataset"}
    assert schema["properties"]["config"] == {"$ref": "#/components/schemas/AuditConfig"}
    assert schema["properties"]["preset"]["enum"] == ["default", "top-components", "paper"]
    assert document["components"]["schemas"]["AuditConfig"]["additionalProperties"] is False
    assert document["components"]["schemas"]["Problem"]["required"][0] == "type"


# --------------------------------------------------------------------- pages


def test_the_reference_page_loads_nothing_from_another_host(client: TestClient) -> None:
    page = client.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert re.findall(r"https?:|//[a-z]", page.text) == []
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert references
    for reference in references:
        assert reference.startswith("/")
        assert client.get(reference).status_code == 200, reference
    started = client.get("/docs/assets/docs.js")
    assert started.headers["Content-Type"].startswith("text/javascript")
    assert "withDefaultFonts: false" in started.text
    assert re.findall(r"https?:", started.text) == []


def test_only_known_assets_are_served(client: TestClient) -> None:
    for name in ("docs.html", "..%2fdocs.html", "%2e%2e%2f__init__.py", "none.js"):
        assert client.get(f"/docs/assets/{name}").status_code == 404


def test_the_vendored_script_has_its_licence(client: TestClient) -> None:
    licence = client.get("/docs/assets/scalar.LICENSE").text
    assert "MIT License" in licence
    version = re.search(r"@scalar/api-reference (\d+\.\d+\.\d+)", licence)
    assert version
    assert version[0] in client.get("/docs/assets/scalar.js").text[:2000]


# -------------------------------------------------------------------- health


def test_health_says_what_fails_without_details(deployment: Deployment, client: TestClient) -> None:
    assert client.get("/livez").json()["status"] == "ok"
    assert client.get("/readyz").json()["checks"] == {"database": "ok", "broker": "ok", "store": "ok"}
    deployment.queue.failure = StoreError("redis://user:hunter2@host")
    try:
        answer = client.get("/readyz")
    finally:
        deployment.queue.failure = None
    assert answer.status_code == 503
    assert answer.json()["status"] == "degraded"
    assert answer.json()["checks"]["broker"] == "failed"
    assert "hunter2" not in answer.text


def test_a_database_without_tables_is_not_ready(tmp_path: Path) -> None:
    template = tmp_path / "empty.db"
    template.touch()
    bare = Deployment(tmp_path / "bare", template)
    with TestClient(bare.app, base_url=BASE_URL) as http:
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").json()["checks"]["database"] == "failed"
    bare.database.dispose()
