"""The two Parquet tables come back exactly as they were written, and only their own schema is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscope.bundle import (
    Coefficients,
    read_coefficients,
    read_documents,
    write_coefficients,
    write_documents,
)
from atomscope.errors import BundleError
from atomscope.types.atoms import DocumentRecord

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(max_size=30)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**31 - 1)
RECORDS = st.lists(
    st.builds(
        DocumentRecord,
        document=st.integers(0, 2**62),
        id=TEXT,
        messages=st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3),
        n_tokens=COUNT,
        n_target_tokens=COUNT,
        loss=FINITE,
        base_loss=st.none() | FINITE,
        gradient_norm=FINITE,
    ),
    max_size=6,
    unique_by=lambda record: record.document,
).map(lambda records: sorted(records, key=lambda record: record.document))
CODES = st.lists(
    st.tuples(st.integers(0, 2**62), st.integers(0, 2**31 - 1), FINITE, FINITE),
    max_size=20,
    unique_by=lambda code: code[:2],
)


def record(document: int, **changes: Any) -> DocumentRecord:
    plain = DocumentRecord(
        document=document, id="", messages=[], n_tokens=2, n_target_tokens=1, loss=1.0, base_loss=None,
        gradient_norm=1.0,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def codes(*entries: tuple[int, int, float, float]) -> Coefficients:
    rows, atoms, values, found = zip(*entries, strict=True) if entries else ((), (), (), ())
    return Coefficients(
        np.array(rows, np.int64),
        np.array(atoms, np.int32),
        np.array(values, np.float64),
        np.array(found, np.float64),
    )


@QUICK
@given(records=RECORDS)
def test_documents_come_back_exactly(tmp_path: Path, records: list[DocumentRecord]) -> None:
    write_documents(records, tmp_path / "documents.parquet")
    assert read_documents(tmp_path / "documents.parquet") == records


def test_rows_are_found_by_their_physical_number_over_several_row_groups(tmp_path: Path) -> None:
    path, rows = tmp_path / "documents.parquet", range(0, 27_000, 3)
    write_documents((record(row, id=f"row-{row}") for row in rows), path)
    assert pq.ParquetFile(path).num_row_groups > 1
    wanted = [26_997, 0, 12_285, 12_288, 12_291, 1, 10**9]
    found = read_documents(path, wanted)
    assert [item.document for item in found] == [0, 12_285, 12_288, 12_291, 26_997]
    assert all(item.id == f"row-{item.document}" for item in found)
    assert [item.document for item in read_documents(path, [26_997])] == [26_997]
    assert read_documents(path, [1]) == []
    assert read_documents(path, []) == []
    assert [item.document for item in read_documents(path)] == list(rows)


@pytest.mark.parametrize("rows", [[1, 1], [2, 1], [-1]], ids=repr)
def test_rows_that_do_not_rise_are_never_written(tmp_path: Path, rows: list[int]) -> None:
    with pytest.raises(BundleError, match=f"document {rows[-1]} comes after"):
        write_documents([record(row) for row in rows], tmp_path / "documents.parquet")


def test_text_that_is_no_unicode_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        write_documents([record(0, id="\ud800")], tmp_path / "documents.parquet")


@QUICK
@given(entries=CODES)
def test_codes_come_back_exactly_by_atom_and_document(
    tmp_path: Path, entries: list[tuple[int, int, float, float]]
) -> None:
    write_coefficients(codes(*entries), tmp_path / "coefficients.parquet")
    found = read_coefficients(tmp_path / "coefficients.parquet")
    expected = sorted(entries, key=lambda code: (code[1], code[0]))
    assert list(zip(found.document, found.atom, found.value, found.code, strict=True)) == expected
    assert (found.document.dtype, found.atom.dtype) == (np.int64, np.int32)
    assert (found.value.dtype, found.code.dtype) == (np.float64, np.float64)
    for atom in {code[1] for code in entries} | {0, 2**31 - 1}:
        documents, values = found.of_atom(atom)
        assert list(zip(documents, values, strict=True)) == [
            (row, value) for row, index, value, _ in expected if index == atom
        ]


def test_an_atom_out_of_range_has_no_codes() -> None:
    for index in (-1, 1, 2**31, 2**40):
        rows, values = codes((3, 0, 0.5, 0.5), (4, 2, 0.5, 0.0)).of_atom(index)
        assert (len(rows), len(values)) == (0, 0)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ((0, 0, float("nan"), 1.0), "a value is not a finite number"),
        ((0, 0, float("inf"), 1.0), "a value is not a finite number"),
        ((0, 0, 1.0, float("nan")), "a code is not a finite number"),
        ((-1, 0, 1.0, 1.0), "below 0"),
        ((0, -1, 1.0, 1.0), "below 0"),
    ],
    ids=["nan", "inf", "code", "document", "atom"],
)
def test_codes_that_are_none_are_neither_written_nor_read(
    tmp_path: Path, entry: tuple[int, int, float, float], told: str
) -> None:
    path = tmp_path / "coefficients.parquet"
    with pytest.raises(BundleError, match=told):
        write_coefficients(codes(entry), path)
    assert not path.exists()
    table = {
        "document": pa.array([entry[0]]),
        "atom": pa.array([entry[1]], pa.int32()),
        "value": [entry[2]],
        "code": [entry[3]],
    }
    pq.write_table(pa.table(table), path)
    with pytest.raises(BundleError, match=rf"coefficients\.parquet: .*{told}"):
        read_coefficients(path)


COLUMNS: dict[str, Any] = {
    "document": pa.array([5]),
    "atom": pa.array([1], pa.int32()),
    "value": pa.array([0.5], pa.float64()),
}


def test_single_precision_values_and_columns_beside_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.parquet"
    pq.write_table(pa.table({"note": ["x"], **COLUMNS, "value": pa.array([0.1], pa.float32())}), path)
    found = read_coefficients(path)
    assert found.value.dtype == np.float64
    assert found.value.tolist() == found.code.tolist() == [float(np.float32(0.1))]


@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("document", None),
        ("atom", None),
        ("value", None),
        ("document", pa.array([5], pa.int32())),
        ("atom", pa.array([1], pa.int64())),
        ("value", pa.array([1], pa.int64())),
        ("value", pa.array(["0.5"])),
        ("document", pa.array([5], pa.uint64())),
        ("code", pa.array([1], pa.int64())),
    ],
    ids=str,
)
def test_a_column_that_is_missing_or_of_another_type_is_named(
    tmp_path: Path, column: str, content: Any
) -> None:
    path = tmp_path / "coefficients.parquet"
    changed = {name: value for name, value in COLUMNS.items() if name != column}
    pq.write_table(pa.table(changed if content is None else {**changed, column: content}), path)
    with pytest.raises(BundleError, match=rf"coefficients\.parquet: column '{column}' of type"):
        read_coefficients(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.parquet"
    pq.write_table(pa.table([*COLUMNS.values(), pa.array([0.25])], names=[*COLUMNS, "value"]), path)
    with pytest.raises(BundleError, match="column 'value'"):
        read_coefficients(path)


def test_nulls_are_refused_by_column(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.parquet"
    pq.write_table(pa.table({**COLUMNS, "document": pa.array([None], pa.int64())}), path)
    with pytest.raises(BundleError, match="column 'document' holds nulls"):
        read_coefficients(path)
    write_documents([record(0)], tmp_path / "documents.parquet")
    table = pq.read_table(tmp_path / "documents.parquet")
    nulls = table.set_column(1, pa.field("id", pa.string()), pa.array([None], pa.string()))
    pq.write_table(nulls, tmp_path / "documents.parquet")
    with pytest.raises(BundleError, match=r"^documents\.parquet is damaged"):
        read_documents(tmp_path / "documents.parquet")


def test_a_column_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.parquet"
    write_coefficients(codes((0, 0, 0.5, 0.5)), path)
    path.write_bytes(path.read_bytes().replace(b"value", b"\xffalue"))
    with pytest.raises(BundleError, match=r"^coefficients\.parquet is damaged"):
        read_coefficients(path)
