"""The fit and its evidence work where their documents are, and give the CPU's results.

On a stand-in for another device (`elsewhere`); `benchmarks/device_check.py` is for a real one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from atomscope.types.spec import AuditConfig, Codes
from atomscope_workers.pipeline.curvature import squared_sum
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.direction_span import direction_span
from atomscope_workers.pipeline.findings import find
from atomscope_workers.pipeline.gram import accumulate_gram
from atomscope_workers.pipeline.lasso import LEAST, settled_codes
from atomscope_workers.pipeline.products import BLOCK, OuterSum
from atomscope_workers.pipeline.projection import project
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.separation import pulls
from atomscope_workers.pipeline.sketch import sketch_rows
from atomscope_workers.pipeline.span import Span, unit_gram, unit_rows
from atomscope_workers.pipeline.vectors import combined
from tests.workers.pipeline.elsewhere import DEVICE, Elsewhere, elsewhere
from tests.workers.pipeline.spans import clustered, curvature_of, gradients, in_shards, noise_rows

ROWS = clustered([item % 4 for item in range(32)], width=60)
SPANS: dict[str, Callable[[], Span]] = {
    "rows": lambda: unit_rows(ROWS),
    "inner products": lambda: unit_gram(ROWS @ ROWS.T),
    "directions": lambda: direction_span(unit_rows(ROWS).rows[:, :20].contiguous()),
}
CONFIGS = {
    "nonnegative": AuditConfig(min_active=2, alpha=0.2),
    "signed": AuditConfig(min_active=2, codes="signed", alpha=0.2),
    "sklearn": AuditConfig(min_active=2, codes="signed", solver="sklearn", alpha=0.1),
}


@pytest.fixture(params=SPANS)
def span(request: pytest.FixtureRequest) -> Span:
    return SPANS[request.param]()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_fit_stays_on_the_device_of_its_documents(span: Span, config: AuditConfig) -> None:
    here = fit(span, 5, config, 0)
    with elsewhere():
        there = fit(span.to(DEVICE), 5, config, 0)
    assert isinstance(there.atoms, Elsewhere)
    assert isinstance(there.codes, Elsewhere)
    assert torch.equal(there.atoms.held, here.atoms)
    assert torch.equal(there.codes.held, here.codes)
    assert there.objective == here.objective


@pytest.mark.parametrize("codes", ["nonnegative", "signed"])
def test_working_sets_stay_on_the_device_of_their_documents(codes: Codes) -> None:
    atoms = unit_rows(noise_rows(6 * LEAST, 60, seed=1)).rows
    documents = unit_rows(noise_rows(20, 60))
    products, inner, start = documents.products(atoms), atoms @ atoms.T, torch.zeros(20, len(atoms))
    here = settled_codes(products, inner, start, 0.13, codes)
    with elsewhere() as seen:
        there = settled_codes(products.to(DEVICE), inner.to(DEVICE), start.to(DEVICE), 0.13, codes)
    assert seen["aten.topk.default"], "sets of all atoms test nothing"
    assert isinstance(there, Elsewhere)
    assert torch.equal(there.held, here)


def test_sums_of_wide_modules_stay_on_the_device_of_their_rows() -> None:
    rows = torch.randn(3, BLOCK + 40, generator=torch.Generator().manual_seed(0))
    here = OuterSum.zeros(rows.shape[1], torch.device("cpu"))
    here.add(rows)
    with elsewhere():
        sums = OuterSum.zeros(rows.shape[1], DEVICE)
        sums.add(rows.to(DEVICE))
        there = sums.matrix()
    assert isinstance(there, Elsewhere)
    assert torch.equal(there.held, here.matrix())


def test_findings_and_evidence_come_back_as_the_cpu_gives_them(span: Span) -> None:
    config = CONFIGS["nonnegative"]
    here = find(span, config, 0)
    surrogate = turned(span, 1, "test")
    with elsewhere():
        moved = span.to(DEVICE)
        there = find(moved, config, 0)
        assert moved.device == DEVICE
        turned_there = turned(moved, 1, "test")
        assert turned_there.device == DEVICE
        np.testing.assert_array_equal(pulls(turned_there, here.atoms), pulls(surrogate, here.atoms))
    np.testing.assert_array_equal(there.atoms, here.atoms)
    np.testing.assert_array_equal(there.behaviours, here.behaviours)


def test_whitening_follows_the_gradients() -> None:
    """Inner products, sketch, lambda and vectors, curvature being stored on the CPU."""
    found, sizes = gradients(13), [5, 8]
    curvature, load = curvature_of(found), in_shards(found, [5, 8])
    weights = torch.rand(2, 13, generator=torch.Generator().manual_seed(0))
    gram = accumulate_gram(curvature, load, sizes)
    rows, energy = sketch_rows(curvature, lambda name: found[name], 13, columns=64, seed=0)
    projected = project(lambda name: found[name], curvature, 13)
    sums = [squared_sum(module.rotation, found[module.name]) for module in curvature]
    vectors = [combined(weights, module, load, sizes, "0") for module in curvature]
    with elsewhere():
        moved = {name: value.to(DEVICE) for name, value in found.items()}
        load_there = in_shards(moved, sizes)
        gram_there = accumulate_gram(curvature, load_there, sizes)
        rows_there, energy_there = sketch_rows(curvature, lambda name: moved[name], 13, columns=64, seed=0)
        projected_there = project(lambda name: moved[name], curvature, 13)
        sums_there = [squared_sum(module.rotation, moved[module.name]).cpu() for module in curvature]
        vectors_there = [combined(weights, module, load_there, sizes, "0") for module in curvature]
        assert torch.equal(gram_there.cpu(), gram)
    assert torch.equal(rows_there, rows)
    assert torch.equal(energy_there, energy)
    np.testing.assert_array_equal(projected_there.rows, projected.rows)
    assert all(torch.equal(one, other) for one, other in zip(sums_there, sums, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(vectors_there, vectors, strict=True))
