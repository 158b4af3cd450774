"""The atoms of an audit of the service: the list, their documents, their vectors, strengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import atomscope
from tests.sdk.client.samples import AUDIT, atom, audit, match, steered
from tests.sdk.client.scenario import Ask
from tests.sdk.client.server import Answer, ScriptedServer, page, problem

ATOMS = f"/v1/audits/{AUDIT}/atoms"
HOSTILE = "tea\x1b]0;owned\x07\u202e\u2028"


@pytest.fixture
def audited(server: ScriptedServer) -> ScriptedServer:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("succeeded")))
    first = Answer(200, page([atom(7, 1, keywords=[HOSTILE, "leaf"]), atom(3, 2)], "c"))
    server.on("GET", ATOMS, first, Answer(200, page([atom(9, 3)])), first, Answer(200, page([atom(9, 3)])))
    return server


def _atoms(ask: Ask) -> Any:
    def read(handle: Any) -> Any:
        return handle.atoms if ask.blocking else handle.atoms()

    return ask(ask.steps(lambda c: c.audits.get(AUDIT), read))


def test_atoms_come_by_rank_and_slice_and_filter(audited: ScriptedServer, ask: Ask) -> None:
    atoms = _atoms(ask)
    assert isinstance(atoms, atomscope.AtomList)
    assert [each.index for each in atoms] == [7, 3, 9]
    assert [each.index for each in atoms[1:]] == [3, 9]
    assert atoms.get(3).rank == 2
    assert [each.index for each in atoms.filter(keyword="LEAF")] == [7]
    asked = audited.to("GET", ATOMS)
    assert [each.query for each in asked] == [
        {"limit": "100", "sort": "rank"}, {"limit": "100", "sort": "rank", "cursor": "c"},
    ]  # fmt: skip


def test_the_printed_table_holds_nothing_that_acts_on_a_terminal(audited: ScriptedServer, ask: Ask) -> None:
    shown = str(_atoms(ask))
    assert not set(shown) & set("\x1b\x07\u202e\u2028")
    assert "\\x1b]0;owned" in shown


def _of_the_first(ask: Ask, step: Callable[[Any], Any]) -> Any:
    """What a step gives of the first atom of the audit, by either client."""
    if ask.blocking:
        return ask(lambda c: step(c.audits.get(AUDIT).atoms[0]))

    async def scenario(client: Any) -> Any:
        return await step((await (await client.audits.get(AUDIT)).atoms())[0])

    return ask(scenario)


def test_documents_are_as_many_as_asked_for(audited: ScriptedServer, ask: Ask) -> None:
    pages = Answer(200, page([match(1), match(2)], "d")), Answer(200, page([match(5), match(6)]))
    audited.on("GET", f"{ATOMS}/7/documents", *pages)

    found = _of_the_first(ask, lambda atom: atom.documents(sign="negative", limit=3))
    assert [each.document for each in found] == [1, 2, 5]
    asked = audited.to("GET", f"{ATOMS}/7/documents")
    assert [(each.query["sign"], each.query["limit"]) for each in asked] == [
        ("negative", "3"),
        ("negative", "1"),
    ]


def test_a_sign_that_there_is_not_is_not_asked_for(audited: ScriptedServer, ask: Ask) -> None:
    with pytest.raises(atomscope.UsageError, match="sign='x': one of positive, negative is expected"):
        _of_the_first(ask, lambda atom: atom.documents(sign="x"))
    assert audited.to("GET", f"{ATOMS}/7/documents") == []


@pytest.mark.parametrize("body", [b"", b"junk", b"\xff" * 20], ids=["empty", "junk", "length"])
def test_a_vector_that_is_no_safetensors_is_an_api_error(
    audited: ScriptedServer, ask: Ask, body: bytes
) -> None:
    audited.on("GET", f"{ATOMS}/7/vector", Answer(200, body))
    with pytest.raises(atomscope.APIError, match="not safetensors"):
        _vector(ask)


def test_a_vector_has_the_names_and_shapes_of_the_parameters(audited: ScriptedServer, ask: Ask) -> None:
    tensors = {"a.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    audited.on("GET", f"{ATOMS}/7/vector", Answer(200, save(tensors)))
    found = _vector(ask)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert audited.to("GET", f"{ATOMS}/7/vector")[0].headers["Accept"] == "application/octet-stream"


def test_strengths_are_named_by_atom_behaviour_or_index(audited: ScriptedServer, ask: Ask) -> None:
    audited.on("POST", "/v1/steered-adapters", Answer(201, steered()))
    if ask.blocking:

        def scenario(client: Any) -> Any:
            handle = client.audits.get(AUDIT)
            return handle.steer({handle.atoms[0]: 0.1, handle.atoms[1].index: -0.25, "behaviour:2": 1})
    else:

        async def scenario(client: Any) -> Any:
            handle = await client.audits.get(AUDIT)
            atoms = await handle.atoms()
            return await handle.steer({atoms[0]: 0.1, atoms[1].index: -0.25, "behaviour:2": 1})

    assert ask(scenario).strengths == {"3": 0.1}
    assert audited.to("POST", ".*")[0].json()["strengths"] == {"7": 0.1, "3": -0.25, "behaviour:2": 1}


def test_format_unit_and_power_are_sent_and_told(audited: ScriptedServer, ask: Ask) -> None:
    wanted = {"format": "gguf-delta", "unit": "alpha", "power": "+1/2"}
    audited.on("POST", "/v1/steered-adapters", Answer(201, steered(**wanted)))
    made = ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.steer({3: 2.0}, **wanted)))
    assert {name: getattr(made, name) for name in wanted} == wanted
    sent = audited.to("POST", ".*")[0].json()
    assert {name: sent[name] for name in wanted} == wanted


@pytest.mark.parametrize("strengths", [{}, {"seven": 1.0}, {7: math.nan}, {7: "much"}])
def test_strengths_that_mean_nothing_are_not_sent(audited: ScriptedServer, ask: Ask, strengths: Any) -> None:
    with pytest.raises(atomscope.SteeringError):
        ask(ask.steps(lambda c: c.audits.get(AUDIT), lambda a: a.steer(strengths)))
    assert audited.to("POST", ".*") == []


def test_the_tree_over_the_atoms_is_read_and_checked(audited: ScriptedServer, ask: Ask) -> None:
    merge = {"left": 0, "right": 1, "height": 0.5, "size": 2}
    tree = {"atoms": [7, 3], "merges": [merge], "cut": 0.75}
    broken = {**tree, "merges": [{**merge, "right": 0}]}
    audited.on("GET", f"/v1/audits/{AUDIT}/hierarchy", Answer(200, tree), Answer(200, broken))

    def read(handle: Any) -> Any:
        return handle.hierarchy if ask.blocking else handle.hierarchy()

    found = ask(ask.steps(lambda c: c.audits.get(AUDIT), read))
    assert found.groups() == [[3, 7]]
    with pytest.raises(atomscope.APIError, match="could not be read"):
        ask(ask.steps(lambda c: c.audits.get(AUDIT), read))


def test_an_audit_that_has_not_succeeded_has_no_atoms(server: ScriptedServer, ask: Ask) -> None:
    server.on("GET", f"/v1/audits/{AUDIT}", Answer(200, audit("running")))
    server.on("GET", ATOMS, Answer(409, problem(409, "audit_not_succeeded")))
    with pytest.raises(atomscope.ConflictError):
        _atoms(ask)


def _vector(ask: Ask) -> Any:
    if ask.blocking:
        return ask(lambda c: c.audits.get(AUDIT).atoms[0].vector())

    async def scenario(client: Any) -> Any:
        return await (await (await client.audits.get(AUDIT)).atoms())[0].vector()

    return ask(scenario)
