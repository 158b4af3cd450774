"""The two clients offer the same: names, parameters, defaults and results."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from atomscope.client import _async, _async_handles, _sync, _sync_handles

BLOCKING, ASYNCHRONOUS = (_sync, _sync_handles), (_async, _async_handles)


def _classes(modules: tuple[Any, ...]) -> dict[str, type]:
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


PAIRS = {
    name: (kind, _classes(ASYNCHRONOUS).get(f"Async{name}")) for name, kind in _classes(BLOCKING).items()
}
ALIKE = {"Generator[Event]": "AsyncGenerator[Event]", "Callable[[Event], None] | None": "OnEvent | None"}
SHARED = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}


def _public(kind: type) -> dict[str, Any]:
    members = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    return {name: member for name, member in members.items() if not name.startswith("_")}


def _own(kind: type, modules: tuple[Any, ...]) -> dict[str, Any]:
    """Members that the modules themselves define: what both inherit is the same anyway."""
    return {
        name: member
        for name, member in _public(kind).items()
        if getattr(getattr(member, "fget", None) or member, "__module__", None)
        in [module.__name__ for module in modules]
    }


def test_every_public_class_has_its_twin() -> None:
    twins = {name.removeprefix("Async") for name in _classes(ASYNCHRONOUS)}
    assert twins == set(PAIRS)
    assert {"Client", "Audit", "RemoteAtom", "SteeredAdapter", "Listing", "Audits", "Keys"} <= twins


@pytest.mark.parametrize("name", PAIRS)
def test_twins_have_the_same_members(name: str) -> None:
    blocking, asynchronous = PAIRS[name]
    assert _public(blocking).keys() == _public(asynchronous).keys()
    for one, other in SHARED.items():
        assert hasattr(blocking, one) == hasattr(asynchronous, other)


@pytest.mark.parametrize("name", PAIRS)
def test_twins_take_the_same_arguments_and_give_the_same_results(name: str) -> None:
    blocking, asynchronous = PAIRS[name]
    others = _own(asynchronous, ASYNCHRONOUS)
    for member, function in _own(blocking, BLOCKING).items():
        if isinstance(function, property):
            # A property that has to ask the service is a method there: nothing can be awaited in passing.
            assert isinstance(others[member], property) or inspect.iscoroutinefunction(others[member])
            continue
        told, other = inspect.signature(function), inspect.signature(others[member])
        assert _shape(told) == _shape(other), member
        assert inspect.iscoroutinefunction(others[member]) or inspect.isasyncgenfunction(others[member])


def _shape(signature: inspect.Signature) -> list[tuple[str, Any, Any, str]]:
    parameters = [(p.name, p.kind, p.default, _type(p.annotation)) for p in signature.parameters.values()]
    return [*parameters, ("return", None, None, _type(signature.return_annotation))]


def _type(annotation: object) -> str:
    alike = ALIKE.get(str(annotation), str(annotation))
    return re.sub(r"\bAsync(?=[A-Z])", "", alike)
