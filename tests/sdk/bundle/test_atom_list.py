"""A list of atoms sorts, filters, finds by index, and prints a table that stays in its columns."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from atomscope.bundle import AtomAttributes, AtomList
from atomscope.types.atoms import DocumentRef
from tests.sdk.bundle.golden_bundle import ATOMS


def atom(index: int, rank: int, **changes: Any) -> AtomAttributes:
    return AtomAttributes(msgspec.structs.replace(ATOMS[0], index=index, rank=rank, label=None, **changes))


FOUND = AtomList(
    [
        atom(7, 1, coherence=0.9, n_active=4, mean_coefficient=0.1, keywords=["Straße", "yes no"]),
        atom(0, 2, coherence=0.5, n_active=9, mean_coefficient=0.3, keywords=["tea"]),
        atom(3, 3, coherence=0.5, n_active=2, mean_coefficient=0.2, keywords=[]),
    ]
)


def indices(atoms: AtomList[AtomAttributes]) -> list[int]:
    return [found.index for found in atoms]


def is_strong(found: AtomAttributes) -> bool:
    return found.mean_coefficient > 0.15


def test_an_atom_is_found_by_place_and_by_index() -> None:
    assert (FOUND[0].index, FOUND[-1].index, FOUND.get(0).rank, len(FOUND)) == (7, 3, 2, 3)
    assert indices(FOUND[1:]) == [0, 3]
    with pytest.raises(KeyError, match="no atom 1 in this list"):
        FOUND.get(1)
    with pytest.raises(KeyError):
        FOUND[1:].get(7)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [7, 0, 3]),
        ({"min_coherence": 0.5}, [7, 0, 3]),
        ({"min_coherence": 0.51}, [7]),
        ({"min_active": 4}, [7, 0]),
        ({"keyword": "STRASSE"}, [7]),
        ({"keyword": "yes"}, []),
        ({"keyword": "tea", "min_active": 10}, []),
        ({"where": is_strong}, [0, 3]),
    ],
)
def test_a_filter_keeps_what_meets_every_condition(conditions: dict[str, Any], expected: list[int]) -> None:
    assert indices(FOUND.filter(**conditions)) == expected


@pytest.mark.parametrize(
    ("key", "rising", "falling"),
    [
        ("rank", [7, 0, 3], [3, 0, 7]),
        ("index", [0, 3, 7], [7, 3, 0]),
        ("coherence", [0, 3, 7], [7, 0, 3]),
        ("n_active", [3, 7, 0], [0, 7, 3]),
        ("mean_coefficient", [7, 3, 0], [0, 3, 7]),
    ],
)
def test_equal_atoms_stay_in_order_of_rank_both_ways(key: Any, rising: list[int], falling: list[int]) -> None:
    assert indices(FOUND.sort_by(key)) == rising
    assert indices(FOUND.sort_by(key, descending=True)) == falling


def test_another_sort_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not 'label'"):
        FOUND.sort_by("label")  # type: ignore[arg-type]


def test_the_table_keeps_its_columns_under_wide_and_hostile_text() -> None:
    wide = [DocumentRef(document=1, value=1.0, preview="x")]
    atoms = AtomList(
        [
            atom(1, 1, keywords=["你好", "\x1b[2J"], top_documents=wide),
            atom(2, 2, keywords=["a\nb"], top_documents=wide),
            atom(3, 3, keywords=["long" * 50], top_documents=wide),
        ]
    )
    lines = atoms.table().splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    places = {cell_len(line[: line.rindex("1: x")]) for line in lines[1:]}
    assert places == {cell_len(lines[0][: lines[0].index("first document")])}


def test_a_long_table_is_cut_and_says_so() -> None:
    assert FOUND.table(limit=1).splitlines()[2:] == ["... and 2 more"]
    assert "more" not in FOUND.table()
    assert AtomList([]).table() == "no atoms"
    assert repr(AtomList([])) == "<0 atoms>"
