"""Coordinates of many documents along directions: exact, whoever takes which parameters, and told of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from atomscope.bundle import layout
from atomscope.types.atoms import AuditReport
from atomscope.types.spec import AuditConfig
from atomscope_workers.stages import by_parameter
from atomscope_workers.stages.project import EXACT_PRODUCTS
from atomscope_workers.stages.space import spanned_documents
from tests.workers.stages.units import (
    PARAMETERS,
    SHAPES,
    Audit,
    bytes_read,
    clustered_gradients,
    extracted,
    gradient_bytes,
)

DOCUMENTS = 30
CLUSTERS = [0, 1, 2, 3, 4] * (DOCUMENTS // 5)
EXACT = AuditConfig(
    shard_documents=7, n_atoms=4, alpha=0.1, min_active=2, top_documents=4, fits=1, surrogates=0
)
ALONG = msgspec.structs.replace(EXACT, exact_documents=1, sketch_columns=256)


def _through(
    work: Path, config: AuditConfig, stage: Any = "dictionary", *, noise: float = 1.0, gradients: Any = None
) -> tuple[Audit, NDArray[np.float64]]:
    """An audit up to a stage, and the cosines of its documents."""
    audit = extracted(work, gradients or clustered_gradients(CLUSTERS, noise), config)
    audit.through(stage)
    span = spanned_documents(audit.context("evidence")).span
    return audit, span.cosines(torch.arange(span.documents)).double().numpy()


def test_along_as_many_directions_as_there_are_cosines_are_the_exact_ones(tmp_path: Path) -> None:
    _, exact = _through(tmp_path / "exact", EXACT)
    audit, found = _through(tmp_path / "along", ALONG)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert load_file(audit.file(layout.DIRECTIONS))["rows"].shape == (DOCUMENTS, PARAMETERS)


def test_along_few_directions_they_are_nearer_than_those_of_as_many_columns(tmp_path: Path) -> None:
    """Five clusters lie along five directions, whatever a sketch of 64 columns adds to them at random."""
    _, exact = _through(tmp_path / "exact", EXACT, noise=0.2)
    config = msgspec.structs.replace(ALONG, sketch_columns=64, directions=8)
    audit, found = _through(tmp_path / "along", config, noise=0.2)
    paths = [audit.file(layout.whitened_sketch(shard)) for shard in range(audit.shards)]
    rows = np.concatenate([load_file(path)["rows"] for path in paths]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    off = ~np.eye(DOCUMENTS, dtype=bool)
    error, of_sketch = (np.sqrt(np.square(cosines - exact)[off].mean()) for cosines in (found, rows @ rows.T))
    assert error < 0.7 * of_sketch


@pytest.mark.parametrize("units", [1, 2])
def test_cosines_do_not_depend_on_how_many_units_share_the_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int
) -> None:
    few = msgspec.structs.replace(ALONG, directions=6)
    _, expected = _through(tmp_path / "expected", few)
    assert len(list((tmp_path / "expected" / "files" / "work" / "along").iterdir())) == 1
    monkeypatch.setattr(by_parameter, "MOST_UNITS", units)
    monkeypatch.setattr(by_parameter, "NUMBERS_PER_PRODUCT", 1)
    audit, found = _through(tmp_path / "other", few)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(list(audit.file("work/along").iterdir())) == units < audit.shards


def test_a_unit_reads_its_own_parameters_of_every_gradient_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_parameter, "NUMBERS_PER_PRODUCT", 1)
    few = msgspec.structs.replace(ALONG, directions=6)
    audit = extracted(tmp_path / "work", clustered_gradients(CLUSTERS), few)
    audit.through("directions")
    read = bytes_read(audit, "along", monkeypatch)
    for shard in range(audit.shards):
        gradients, header = gradient_bytes(audit, shard)
        # Two units have a parameter each, and read the header.
        assert read[layout.gradient_shard(shard)] == 2 * gradients + 2 * header


def test_a_document_without_a_gradient_takes_no_part(tmp_path: Path) -> None:
    gradients = clustered_gradients(CLUSTERS)
    for value in gradients.values():
        value[4] = 0
    audit, cosines = _through(tmp_path / "work", ALONG, gradients=gradients)
    assert cosines.shape == (DOCUMENTS - 1, DOCUMENTS - 1)
    spanned = spanned_documents(audit.context("evidence"))
    assert spanned.used.tolist() == [place for place in range(DOCUMENTS) if place != 4]
    dictionary = load_file(audit.file(layout.DICTIONARY))
    assert not dictionary["weights"][:, 4].any()
    assert dictionary["norm"][4] == 0


def test_what_is_measured_is_told_of_documents_with_a_gradient(tmp_path: Path) -> None:
    """Along as many directions as there are the error is nothing, whichever documents have no gradient."""
    gradients = clustered_gradients(CLUSTERS)
    for value in gradients.values():
        value[2] = 0
    audit, _ = _through(tmp_path / "work", ALONG, "report", gradients=gradients)
    report = msgspec.json.decode(audit.file(layout.REPORT).read_bytes(), type=AuditReport)
    told = report.details["directions"]
    first = [row for row in audit.plan().shards[0].documents if row != 6]  # row 6 is the third document
    assert told["documents_measured"] == len(first)
    assert told["cosine_error"] < 1e-4
    assert told["share_along"] == pytest.approx(1, abs=1e-4)


def test_products_of_other_units_than_share_the_parameters_are_not_added_up(tmp_path: Path) -> None:
    audit = extracted(tmp_path / "work", clustered_gradients(CLUSTERS), ALONG)
    audit.through("along")
    shutil.copy(audit.file(layout.products_along("along", 0)), audit.file(layout.products_along("along", 9)))
    with pytest.raises(ValueError, match="units left products in work/along/"):
        audit.run("directions_again")


def test_no_gradients_at_all_are_no_atoms(tmp_path: Path) -> None:
    nothing = {name: np.zeros((DOCUMENTS, *shape), dtype=np.float32) for name, shape in SHAPES.items()}
    audit = extracted(tmp_path / "work", nothing, ALONG)
    audit.through("report")
    assert audit.atoms() == []


def test_the_report_tells_how_much_lies_along_the_directions_and_the_error_of_cosines(tmp_path: Path) -> None:
    _, exact = _through(tmp_path / "exact", EXACT)
    config = msgspec.structs.replace(ALONG, directions=5)
    audit, cosines = _through(tmp_path / "along", config, "report")
    report = msgspec.json.decode(audit.file(layout.REPORT).read_bytes(), type=AuditReport)
    told = report.details["directions"]
    assert (told["directions"], told["sketch_columns"], told["documents_measured"]) == (5, 256, 7)
    rows = load_file(audit.file(layout.DIRECTIONS))["rows"].astype(np.float64)
    assert told["share_along"] == pytest.approx(np.square(rows).sum() / DOCUMENTS, rel=1e-6)
    first = ~np.eye(7, dtype=bool)
    error = np.sqrt(np.square(cosines[:7, :7] - exact[:7, :7])[first].mean())
    assert told["cosine_error"] == pytest.approx(error, rel=1e-3)


def test_where_every_inner_product_is_kept_nothing_is_found_along_directions(tmp_path: Path) -> None:
    audit, _ = _through(tmp_path / "work", EXACT, "report")
    report = msgspec.json.decode(audit.file(layout.REPORT).read_bytes(), type=AuditReport)
    assert "directions" not in report.details
    for path in (layout.DIRECTIONS, layout.direction_weights("directions"), "work/along", EXACT_PRODUCTS):
        assert not audit.file(path).exists()
