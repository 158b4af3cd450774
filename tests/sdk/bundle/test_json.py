"""JSON of a bundle: one value has one form, and no number is lost to null."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atomscope
from atomscope.bundle import encode_json, layout
from tests.sdk.bundle.golden_bundle import REPORT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(value=JSON)
def test_what_is_written_is_read_back_exactly(value: Any) -> None:
    written = encode_json(value)
    assert msgspec.json.decode(written) == value
    assert json.loads(written) == value
    assert written.endswith(b"\n")


def test_the_order_in_which_a_dict_was_filled_does_not_show() -> None:
    assert encode_json({"b": 1, "a": {"d": 1, "c": 2}}) == encode_json({"a": {"c": 2, "d": 1}, "b": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_hold_is_refused_wherever_it_is(number: float) -> None:
    for value in (
        number,
        [number],
        {"a": [{"b": (1.0, number)}]},
        msgspec.structs.replace(REPORT, loss_base=number),
    ):
        with pytest.raises(atomscope.BundleError, match="cannot be written"):
            encode_json(value)


@pytest.mark.parametrize(
    "content", [b'{"n_atoms": "\\u001b[2J"}', b"[" * 100_000, b'{"audit_id": "\xff"}', b"\x00"]
)
def test_damage_is_told_by_file_on_one_printable_line(copied: Path, content: bytes) -> None:
    file = copied / layout.REPORT
    file.write_bytes(content.ljust(file.stat().st_size))
    manifest = json.loads((copied / layout.MANIFEST).read_bytes())
    for entry in manifest["files"]:
        entry["size"] = (copied / entry["path"]).stat().st_size
    (copied / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(atomscope.BundleError, match=r"^report\.json is damaged: ") as caught:
        _ = atomscope.open(copied).report
    assert str(caught.value).isprintable()


def test_a_missing_field_is_named(copied: Path) -> None:
    file = copied / layout.REPORT
    content = file.read_bytes().replace(b'"n_atoms"', b'"m_atoms"')
    file.write_bytes(content)
    with pytest.raises(atomscope.BundleError, match=r"report\.json is damaged: .*n_atoms"):
        _ = atomscope.open(copied).report
