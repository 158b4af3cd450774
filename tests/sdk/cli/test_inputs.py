"""`models|adapters|datasets list` on a service."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sdk.cli.running import Run
from tests.sdk.client.samples import adapter, an_id, dataset, model
from tests.sdk.client.server import Answer, ScriptedServer, page

HOSTILE = "mine\x1b]0;owned\x07\nsecond line"
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "models": (model(name=HOSTILE, architecture="LlamaForCausalLM"), "LlamaForCausalLM"),
    "adapters": (adapter(name=HOSTILE, base_model_name="owner/base", rank=16), "owner/base"),
    "datasets": (dataset(name=HOSTILE, format="csv"), "csv"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_listed_one_a_line_with_nothing_that_acts(
    run: Run, server: ScriptedServer, kind: str
) -> None:
    item, told = KINDS[kind]
    server.on("GET", f"/v1/{kind}", Answer(200, page([item])))
    done = run(kind, "list")
    assert done.status == 0
    header, line = done.out.splitlines()
    assert header.split()[0] == "id"
    assert line.split()[0] == item["id"]
    assert told in line
    assert "mine\\x1b]0;owned\\x07\\nsecond line" in line
    assert run(kind, "list", "--json").json()[0]["name"] == HOSTILE


def test_a_list_goes_on_over_pages_to_its_limit(run: Run, server: ScriptedServer) -> None:
    pages = [Answer(200, page([model(1), model(2)], "c")), Answer(200, page([model(3), model(4)]))]
    server.on("GET", "/v1/models", *pages)
    done = run("models", "list", "--limit", "3")
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [an_id("mdl", n) for n in (1, 2, 3)]
    assert [got.query for got in server.got] == [{"limit": "3"}, {"limit": "3", "cursor": "c"}]
