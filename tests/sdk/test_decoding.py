"""Messages of the decoder tell what would be accepted, and no key is given twice unnoticed."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from atomscope.decoding import repeated_key, with_choices
from atomscope.types.spec import AuditConfig


class Inner(msgspec.Struct):
    kind: Literal["a", "b"]


class Outer(msgspec.Struct):
    inner: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    count: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto"] = "auto"


@pytest.mark.parametrize(
    ("given", "choices", "where"),
    [
        ({"inner": {"kind": "c"}}, "'a', 'b'", "`$.inner.kind`"),
        ({"many": [{"kind": "a"}, {"kind": "c"}]}, "'a', 'b'", "`$.many[1].kind`"),
        ({"named": {"x": {"kind": "c"}}}, "'a', 'b'", "`$.named[...].kind`"),
        ({"count": "all"}, "'auto'", "`$.count`"),
    ],
    ids=["object", "list", "mapping", "number or word"],
)
def test_a_word_that_is_none_of_few_is_answered_with_them(
    given: dict[str, object], choices: str, where: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Outer)
    told = with_choices(str(caught.value), Outer)
    assert told.endswith(f"; one of {choices} is expected - at {where}")


def test_the_settings_of_an_audit_tell_their_choices() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"solver": "pt"}, AuditConfig)
    assert "one of 'sklearn', 'torch' is expected" in with_choices(str(caught.value), AuditConfig)


@pytest.mark.parametrize("text", ["Expected `int`, got `str` - at `$.count`", "Invalid enum value 'x'", ""])
def test_any_other_message_stays(text: str) -> None:
    assert with_choices(text, Outer) == text


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1, "b": 2}', None),
        (b'{"a": 1, "a": 1}', "a"),
        (b'{"x": [{"a": 1, "b": {"c": 0, "c": 1}}]}', "c"),
        (b'{"a": 1, "\\u0061": 2}', "a"),
        (b'[1, 1, "a", "a"]', None),
        (b"3", None),
    ],
)
def test_a_key_given_twice_is_found_at_any_depth(content: bytes, found: str | None) -> None:
    assert repeated_key(content) == found
