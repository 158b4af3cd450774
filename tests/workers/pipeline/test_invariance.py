"""What must not matter does not: bases and units of modules; order, shards and batches of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atomscope.types.spec import AuditConfig, Preconditioner
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.curvature import (
    ModuleCurvature,
    choose_components,
    kronecker_lambda,
    measured_lambda,
    rotations,
    squared_sum,
)
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.factors import FactorSums, reduce_factors
from atomscope_workers.pipeline.fit import ACTIVE, Fit
from atomscope_workers.pipeline.gradients import gradient_pass
from atomscope_workers.pipeline.gram import accumulate_gram
from atomscope_workers.pipeline.plan import make_plan
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.separation import pulls, separation
from atomscope_workers.pipeline.span import Span, unit_gram, unit_rows
from tests.workers.pipeline.spans import clustered, curvature_of, gradients, in_shards, whitened
from tests.workers.pipeline.tiny import EVERY, random_documents, tiny_lora

CPU = torch.device("cpu")

# -------------------------------------------------------------------- modules


@dataclass(frozen=True)
class Tokens:
    """What one module sees of N documents of T tokens."""

    inputs: torch.Tensor
    """(N, T, d_in)."""
    outputs: torch.Tensor
    """Output gradients (N, T, d_out)."""

    def changed(self, seed: int, input_scale: float, output_scale: float) -> Tokens:
        """The same in other orthonormal bases and other units."""
        generator = torch.Generator().manual_seed(seed)
        q_a, q_s = (
            torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q.float()
            for size in (self.inputs.shape[2], self.outputs.shape[2])
        )
        return Tokens(input_scale * self.inputs @ q_a, output_scale * self.outputs @ q_s)


def _tokens(shape: tuple[int, int], seed: int, documents: int = 9, tokens: int = 7) -> Tokens:
    """Random tokens that are stronger in some coordinates than in others."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(width: int) -> torch.Tensor:
        return torch.randn(documents, tokens, width, generator=generator) * torch.linspace(2, 0.4, width)

    return Tokens(inputs=drawn(shape[1]), outputs=drawn(shape[0]))


def _products(modules: Mapping[str, Tokens], preconditioner: Preconditioner = "ekfac-full") -> torch.Tensor:
    """Inner products of the documents in the whitened space, from the tokens of every module."""
    factors = FactorSums(groups={name: name for name in modules})
    raw: dict[str, torch.Tensor] = {}
    for name, seen in modules.items():
        factors.add_input(name, seen.inputs.flatten(0, 1))
        factors.add_output(name, seen.outputs.flatten(0, 1), seen.outputs.flatten(0, 1).shape[0])
        raw[name] = torch.einsum("nto,nti->noi", seen.outputs, seen.inputs)
    count = len(next(iter(raw.values())))
    curvature: list[ModuleCurvature] = []
    for rotation in rotations(factors):
        measured = measured_lambda(squared_sum(rotation, raw[rotation.name]), count)
        lambdas = kronecker_lambda(rotation) if preconditioner == "kfac" else measured
        curvature.append(
            choose_components(
                rotation, lambdas, preconditioner=preconditioner, components=10**6, damping=0.01
            )
        )
    return accumulate_gram(curvature, lambda _, name: raw[name], [count])


def _close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> bool:
    return float((found - expected).abs().max()) <= relative * float(expected.abs().max())


SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3)
SCALES = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e3])


@settings(max_examples=40, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99), scales=st.lists(SCALES, min_size=6, max_size=6))
def test_bases_and_units_of_a_module_leave_whitened_products_unchanged(
    shapes: list[tuple[int, int]], seed: int, scales: list[float]
) -> None:
    modules = {f"m{item}": _tokens(shape, seed + item) for item, shape in enumerate(shapes)}
    changed = {
        name: seen.changed(seed, *scales[2 * item : 2 * item + 2])
        for item, (name, seen) in enumerate(modules.items())
    }
    assert _close(_products(changed), _products(modules), 1e-3)


@settings(max_examples=20, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 99), names=st.permutations(["a", "b", "c"]))
def test_names_and_order_of_modules_leave_whitened_products_unchanged(
    shapes: list[tuple[int, int]], seed: int, names: list[str]
) -> None:
    seen = [_tokens(shape, seed + item) for item, shape in enumerate(shapes)]
    named = dict(zip(["a", "b", "c"], seen, strict=False))
    renamed = dict(reversed(list(zip(names, seen, strict=False))))
    assert _close(_products(renamed), _products(named), 1e-5)


def test_the_papers_absolute_damping_does_depend_on_units() -> None:
    """So that the equality above is no property of anything that is divided by something."""
    seen = _tokens((4, 5), 0)
    same = _products({"m": seen.changed(1, 1.0, 1.0)}, "kfac")
    assert _close(same, _products({"m": seen}, "kfac"), 1e-3)
    assert not _close(_products({"m": seen.changed(1, 1e-3, 1e-3)}, "kfac"), same, 0.5)


# ------------------------------------------------------------------ documents

LORA = tiny_lora(EVERY)
DOCUMENTS = random_documents(24)
CONFIG = AuditConfig(codes_per_document=3)


@dataclass(frozen=True)
class Whole:
    """What the pipeline finds in some documents, by their rows."""

    gradients: torch.Tensor
    """(N, parameters)."""
    gram: torch.Tensor
    fitted: Fit


def _whole(
    documents: Sequence[TokenizedDocument], *, token_budget: int = 10**6, shard_documents: int = 10**6
) -> Whole:
    """From token ids to the fit, planned as an audit plans it, with a model that runs."""
    by_row = {item.document: item for item in documents}
    plan = make_plan(
        {row: len(item.input_ids) for row, item in by_row.items()},
        {row: int(item.target_mask.sum()) for row, item in by_row.items()},
        n_rows=max(by_row) + 1,
        token_budget=token_budget,
        shard_documents=shard_documents,
        compute_dtype="float32",
        device_kind="cpu",
    )
    parts: list[FactorSums] = []
    rows: dict[int, dict[str, torch.Tensor]] = {}
    for shard in plan.shards:
        parts.append(FactorSums())
        with gradient_pass(LORA, parts[-1]) as run:
            for batch in shard.micro_batches:
                result = run(collate([by_row[row] for row in batch], CPU))
                for place, row in enumerate(batch):
                    rows[row] = {name: value[place] for name, value in result.gradients.items()}
    sizes = [len(shard.documents) for shard in plan.shards]
    raw = {name: torch.stack([rows[row][name] for row in sorted(rows)]) for name in rows[min(rows)]}
    load = in_shards(raw, sizes)
    curvature: list[ModuleCurvature] = []
    for rotation in rotations(reduce_factors(parts)):
        sums = [squared_sum(rotation, load(shard, rotation.name)) for shard in range(len(sizes))]
        lambdas = measured_lambda(torch.stack(sums).sum(0), len(rows))
        curvature.append(
            choose_components(rotation, lambdas, preconditioner="ekfac-full", components=1, damping=0.01)
        )
    gram = accumulate_gram(curvature, load, sizes)
    flat = torch.cat([value.flatten(1) for _, value in sorted(raw.items())], dim=1)
    return Whole(flat, gram, fit(unit_gram(gram), 6, CONFIG, 0))


@pytest.fixture(scope="module")
def reference() -> Whole:
    return _whole(DOCUMENTS)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(shard_documents=st.integers(1, 24), token_budget=st.integers(1, 200))
def test_shards_and_batches_leave_gradients_products_and_objective_unchanged(
    reference: Whole, shard_documents: int, token_budget: int
) -> None:
    found = _whole(DOCUMENTS, shard_documents=shard_documents, token_budget=token_budget)
    change = (found.gradients - reference.gradients).norm(dim=1) / reference.gradients.norm(dim=1)
    assert float(change.max()) <= 1e-5
    assert _close(found.gram, reference.gram, 1e-3)
    assert abs(found.fitted.objective - reference.fitted.objective) <= 1e-4


@settings(max_examples=5, deadline=None, derandomize=True)
@given(order=st.permutations(list(range(24))), token_budget=st.integers(20, 200))
def test_the_order_of_documents_leaves_gradients_and_products_unchanged(
    reference: Whole, order: list[int], token_budget: int
) -> None:
    moved = [replace(DOCUMENTS[row], document=place) for place, row in enumerate(order)]
    found = _whole(moved, token_budget=token_budget, shard_documents=7)
    expected = reference.gradients[order]
    assert float(((found.gradients - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert _close(found.gram, reference.gram[order][:, order], 1e-3)


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(list(range(60))))
def test_the_order_of_well_separated_documents_leaves_objective_and_atoms_unchanged(order: list[int]) -> None:
    rows, config = clustered([item % 5 for item in range(60)], noise=0.05), AuditConfig(alpha=0.1)
    expected, found = fit(unit_rows(rows), 5, config, 0), fit(unit_rows(rows[order]), 5, config, 0)
    assert abs(found.objective - expected.objective) <= 1e-4
    cosines = expected.atoms @ found.atoms.T
    partner = cosines.argmax(1)
    assert sorted(partner.tolist()) == list(range(5))
    assert float(cosines.max(1).values.min()) > 0.9999
    codes = torch.zeros_like(found.codes)
    codes[order] = found.codes[:, partner]
    assert torch.equal(codes > ACTIVE, expected.codes > ACTIVE), "an atom changed its documents"


# --------------------------------------------------------------------- routes


@settings(max_examples=5, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_inner_products_by_blocks_and_explicit_rows_give_the_same_findings(
    sizes: list[int], seed: int
) -> None:
    """Codes, separations and surrogates, of gradients in shards of any size."""
    count = sum(sizes)
    assume(count >= 12)
    raw = gradients(count, seed)
    curvature = curvature_of(raw)
    by_gram: Span = unit_gram(accumulate_gram(curvature, in_shards(raw, sizes), sizes))
    by_rows: Span = unit_rows(whitened(raw, curvature).float())
    # Few rounds: over many, a difference in the last digit may choose another of two equal atoms.
    config = AuditConfig(pieces=4, alpha=0.2)
    for spans in ((by_gram, by_rows), (turned(by_gram, seed, "s"), turned(by_rows, seed, "s"))):
        fits = [fit(span, 4, config, seed) for span in spans]
        assert fits[0].objective == pytest.approx(fits[1].objective, rel=1e-3)
        torch.testing.assert_close(fits[0].codes, fits[1].codes, atol=2e-2, rtol=0)
        table = fits[1].codes.double().numpy()
        parted = [pulls(span, table) for span in spans]
        np.testing.assert_allclose(parted[0], parted[1], atol=1e-4)
        np.testing.assert_allclose(separation(parted[0]), separation(parted[1]), atol=0.05)
