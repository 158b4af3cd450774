"""What becomes of answers: typed values, exceptions by status, and bodies that are something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import atomscope
from atomscope import AsyncClient, Client, UsageError
from tests.sdk.client.samples import AUDIT, MODEL, audit, model
from tests.sdk.client.scenario import KEY, Ask
from tests.sdk.client.server import Answer, ScriptedServer, page, problem, serving

BY_STATUS = {
    400: atomscope.BadRequestError,
    401: atomscope.AuthenticationError,
    403: atomscope.PermissionDeniedError,
    404: atomscope.NotFoundError,
    409: atomscope.ConflictError,
    413: atomscope.PayloadTooLargeError,
    418: atomscope.APIStatusError,
    422: atomscope.UnprocessableEntityError,
    429: atomscope.RateLimitError,
    500: atomscope.InternalServerError,
    503: atomscope.InternalServerError,
}


def test_presets_are_those_of_the_service(server: ScriptedServer, ask: Ask) -> None:
    told = {
        "name": "newer",
        "description": "one line",
        "settings": {"warp": 9},
        "object": "preset",
        "more": 1,
    }
    server.on("GET", "/v1/presets", Answer(200, page([told])))
    (found,) = ask(lambda c: c.presets())
    assert (found.name, found.description, found.settings) == ("newer", "one line", {"warp": 9})


@pytest.mark.parametrize("status", BY_STATUS)
def test_each_status_has_its_exception(server: ScriptedServer, status: int) -> None:
    told = problem(status, "the_code", param="name", errors=[{"field": "name", "message": "too long"}])
    server.on("GET", "/v1/models/.*", Answer(status, told))
    client = Client(base_url=server.url, api_key=KEY, max_retries=0)
    with client, pytest.raises(atomscope.APIStatusError) as caught:
        client.models.get(MODEL)
    error = caught.value
    assert type(error) is BY_STATUS[status]
    assert (error.code, error.param, error.errors[0]["field"]) == ("the_code", "name", "name")


def test_without_the_header_the_request_id_is_the_bodys(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", "/v1/models/.*", Answer(404, problem(404, "not_found"), {"X-Request-Id": ""}))
    with pytest.raises(atomscope.NotFoundError) as caught:
        ask(lambda c: c.models.get(MODEL))
    assert caught.value.request_id == "req_body"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>\x1b[31mnot here</html>",
        b'{"id": "mdl_',
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"null",
        b"[" * 5000,
    ],
    ids=["empty", "html", "cut", "binary", "list", "text", "null", "deep"],
)
def test_a_body_that_is_no_model_is_an_api_error_with_the_request_id(
    server: ScriptedServer, ask: Ask, body: bytes
) -> None:
    server.on("GET", "/v1/models/.*", Answer(200, body))
    with pytest.raises(atomscope.APIError, match=r"could not be read.*req_header") as caught:
        ask(lambda c: c.models.get(MODEL))
    assert caught.value.request_id == "req_header"
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<h1>Bad Gateway</h1>", b"", b"[1]", b'{"errors": 3, "code": 7}'])
def test_an_error_that_is_no_problem_document_still_is_that_status(
    server: ScriptedServer, body: bytes
) -> None:
    server.on("GET", "/v1/models/.*", Answer(502, body))
    client = Client(base_url=server.url, api_key=KEY, max_retries=0)
    with client, pytest.raises(atomscope.InternalServerError, match="502"):
        client.models.get(MODEL)


def test_fields_and_settings_of_a_newer_service_are_left_aside(server: ScriptedServer, ask: Ask) -> None:
    newer = audit("running", colour="blue", config={"alpha": 0.2, "warp": 9})
    server.on("GET", "/v1/audits/.*", Answer(200, newer))
    server.on("GET", "/v1/audits", Answer(200, {**page([newer]), "total": 1}))
    found = ask(lambda c: c.audits.get(AUDIT))
    assert found.config.alpha == 0.2
    listed = ask(lambda c: c.audits.list())
    assert [each.config.alpha for each in listed] == [0.2]


def test_a_missing_field_is_named(server: ScriptedServer, ask: Ask) -> None:
    short = model()
    del short["status"]
    server.on("GET", "/v1/models/.*", Answer(200, short))
    with pytest.raises(atomscope.APIError, match="status"):
        ask(lambda c: c.models.get(MODEL))


def test_a_redirect_is_not_followed_so_the_key_stays_here(server: ScriptedServer, ask: Ask) -> None:
    with serving() as elsewhere:
        elsewhere.on("GET", ".*", Answer(200, model()))
        server.on(
            "GET", "/v1/models/.*", Answer(307, b"", {"Location": f"{elsewhere.url}/v1/models/{MODEL}"})
        )
        with pytest.raises(atomscope.APIError, match=r"redirect.*base_url"):
            ask(lambda c: c.models.get(MODEL))
        assert elsewhere.got == []


@pytest.mark.parametrize("tail", ["/audits/api", "/audits/api/", "/audits/api//"])
def test_a_base_url_may_have_a_path_and_slashes(server: ScriptedServer, tail: str) -> None:
    server.on("GET", "/audits/api/v1/models/.*", Answer(200, model()))
    with Client(base_url=f"{server.url}{tail}", api_key=KEY) as client:
        assert client.models.get(MODEL).id == MODEL


def test_the_environment_says_where_and_with_which_key(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.on("GET", "/v1/models/.*", Answer(200, model()))
    file = tmp_path / "key"
    file.write_text("ask_of_the_file\n")
    monkeypatch.setenv("ATOMSCOPE_BASE_URL", server.url)
    monkeypatch.delenv("ATOMSCOPE_API_KEY", raising=False)
    monkeypatch.setenv("ATOMSCOPE_API_KEY_FILE", os.fspath(file))
    for key in ("ask_of_the_file", "ask_of_the_environment", "ask_given"):
        if key == "ask_of_the_environment":
            monkeypatch.setenv("ATOMSCOPE_API_KEY", key)
        with Client(api_key=key if key == "ask_given" else None) as client:
            client.models.get(MODEL)
        assert server.got[-1].headers["Authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base_url": "localhost:8321"}, "http"),
        ({"base_url": "ftp://host"}, "http"),
        ({"base_url": "http://"}, "host"),
        ({"base_url": "http://host:port"}, "base URL"),
        ({"base_url": "http://user:secret@host"}, "apart from it"),
        ({"base_url": "http://host/?a=1"}, "query"),
        ({"api_key": ""}, "key"),
        ({"api_key": "ask_1\nX-Evil: 1"}, "line break"),
        ({"api_key": "ask_é"}, "ASCII"),
    ],
)
def test_an_unusable_address_or_key_is_told_at_once(options: dict[str, Any], told: str) -> None:
    options = {"base_url": "http://host", "api_key": "ask_1", **options}
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match=told) as caught:
            kind(**options)
        assert "secret" not in str(caught.value)


def test_no_key_and_an_unreadable_key_file_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATOMSCOPE_API_KEY", raising=False)
    monkeypatch.delenv("ATOMSCOPE_API_KEY_FILE", raising=False)
    with pytest.raises(UsageError, match="ATOMSCOPE_API_KEY"):
        Client()
    monkeypatch.setenv("ATOMSCOPE_API_KEY_FILE", os.fspath(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        Client()
    (tmp_path / "none").write_bytes(b"\x00\xff")
    with pytest.raises(UsageError, match="does not hold one key"):
        Client()


@pytest.mark.parametrize("name", ["../keys", "", "a/b", "mdl_1?x=1", "mdl_ 1", "mdl_\n"])
def test_what_is_no_id_never_becomes_a_path(server: ScriptedServer, ask: Ask, name: str) -> None:
    with pytest.raises(UsageError, match="not an id"):
        ask(lambda c: c.models.get(name))
    assert server.got == []


def test_a_list_goes_through_every_page(server: ScriptedServer, ask: Ask) -> None:
    server.on(
        "GET",
        "/v1/models",
        Answer(200, page([model(1), model(2)], "c1")),
        Answer(200, page([], "c2")),
        Answer(200, page([model(3)])),
    )
    listed = ask(ask.steps(lambda c: c.models.list(limit=2), _all))
    assert [each.name for each in listed] == ["model 1", "model 2", "model 3"]
    assert [got.query for got in server.got] == [
        {"limit": "2"}, {"limit": "2", "cursor": "c1"}, {"limit": "2", "cursor": "c2"},
    ]  # fmt: skip


def test_a_list_that_goes_in_circles_is_an_error(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", "/v1/models", Answer(200, page([model(1)], "same")))
    with pytest.raises(atomscope.APIError, match="not where"):
        ask(ask.steps(lambda c: c.models.list(), _all))


def test_health_is_told_even_when_it_is_poor(server: ScriptedServer, ask: Ask) -> None:
    poor = {"status": "degraded", "version": "1", "checks": {"broker": "down"}}
    server.on("GET", "/readyz", Answer(503, poor))
    assert ask(lambda c: c.health()).checks == {"broker": "down"}


def test_raw_gives_headers_and_content(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", "/v1/models", Answer(200, page([]), {"RateLimit": "r=9"}))
    reply = ask(lambda c: c.raw("GET", "/v1/models", params={"limit": 1}))
    assert (reply.status, reply.headers["ratelimit"], reply.request_id) == (200, "r=9", "req_header")
    assert reply.json()["data"] == []
    with pytest.raises(UsageError):
        ask(lambda c: c.raw("GET", f"{server.url}/v1/models"))


def _all(listing: Any) -> Any:
    if hasattr(listing, "__aiter__"):

        async def collect() -> list[Any]:
            return [item async for item in listing]

        return collect()
    return list(listing)
