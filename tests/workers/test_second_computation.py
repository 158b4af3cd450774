"""Every stage of an audit against a second, independent computation of it, on a tiny random model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import atomscope
from atomscope.types.spec import AuditConfig, Preconditioner
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.local_runs import request as asked
from tests.workers.local_runs import run
from tests.workers.second_computation import (
    Array,
    Document,
    Passes,
    contrast_keywords,
    mean_pairwise_cosine,
    run_model,
    tokenise,
)

DOCUMENTS = 22
CONFIG = AuditConfig(
    dtype="float32",
    solver="sklearn",
    codes="signed",
    shard_documents=8,
    token_budget=160,
    components=12,
    n_atoms=6,
    alpha=0.1,
    min_active=3,
    top_documents=5,
    fits=1,
    surrogates=0,
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


@dataclass(frozen=True)
class Both:
    """An audit, and what was computed beside it."""

    bundle: atomscope.Bundle
    folder: Path
    documents: list[Document]
    passes: Passes
    preconditioner: Preconditioner

    def stored(self, path: str) -> dict[str, Any]:
        return load_file(self.folder / path)

    @property
    def gradients(self) -> dict[str, Array]:
        shards = [self.stored(f"gradients/{index:04d}.safetensors") for index in range(3)]
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    @property
    def projected(self) -> dict[str, Array]:
        shards = [self.stored(f"projected/{index:04d}.safetensors") for index in range(3)]
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    @property
    def curvature(self) -> dict[str, Any]:
        return self.stored("curvature/curvature.safetensors")

    @property
    def groups(self) -> dict[str, str]:
        with safe_open(self.folder / "curvature/curvature.safetensors", "np") as file:
            return json.loads(file.metadata()["atomscope"])["groups"]

    def bases(self, name: str) -> tuple[Array, Array]:
        """Q_S and Q_A of a module as stored, float64."""
        stored = self.curvature
        q_s, q_a = stored[f"outputs/{name}/vectors"], stored[f"inputs/{self.groups[name]}/vectors"]
        return q_s.astype(np.float64), q_a.astype(np.float64)

    def rotated(self, name: str) -> Array:
        """R = Q_S^T G Q_A of every document, from the second computation's gradients."""
        q_s, q_a = self.bases(name)
        return np.stack([q_s.T @ gradient @ q_a for gradient in self.passes.gradients[name]])

    def lambdas(self, name: str) -> tuple[Array, float]:
        """Lambda and what is added to it, by the formulas."""
        if self.preconditioner == "ekfac":
            found = np.mean(np.square(self.rotated(name)), axis=0)
            return found, 0.01 * float(found.mean())
        inputs = np.linalg.eigvalsh(self.passes.input_factors[name])[::-1]
        outputs = np.linalg.eigvalsh(self.passes.output_factors[name])[::-1]
        return np.outer(np.maximum(outputs, 0), np.maximum(inputs, 0)), 1e-6

    def codes(self) -> Array:
        dense = np.zeros((DOCUMENTS, len(self.stored("atoms/dictionary.safetensors")["atoms"])))
        table = self.bundle.coefficients
        dense[table.document, table.atom] = table.value
        return dense


@pytest.fixture(scope="module", params=["ekfac", "kfac"])
def both(
    second: tuple[Path, Path, Path, list[Document], Passes],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Both:
    base, adapter, dataset, documents, passes = second
    folder = tmp_path_factory.mktemp("second") / "bundle"
    config = msgspec.structs.replace(
        CONFIG, preconditioner=request.param, vector_power="0" if request.param == "ekfac" else "+1/2"
    )
    run(asked(base, adapter, dataset, folder, config))
    return Both(atomscope.open(folder), folder, documents, passes, request.param)


@pytest.fixture(scope="module")
def second(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path, list[Document], Passes]:
    adapter = tiny_adapter(TARGETS, use_rslora=True)
    dataset = write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", DOCUMENTS)
    documents = tokenise(tiny_llama, dataset)
    return tiny_llama, adapter, dataset, documents, run_model(tiny_llama, adapter, documents)


def close(found: Any, expected: Any, relative: float = 1e-4) -> None:
    """Equal within `relative` of the largest magnitude: float32 arithmetic against float64."""
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * scale)


def test_tokens_and_losses(both: Both) -> None:
    for row, (document, record) in enumerate(
        zip(both.documents, both.bundle.documents.values(), strict=True)
    ):
        assert record.document == row
        assert record.n_tokens == len(document.ids)
        assert record.n_target_tokens == sum(document.targets)
    records = list(both.bundle.documents.values())
    close([record.loss for record in records], both.passes.losses, 1e-5)
    close([record.base_loss for record in records], both.passes.base_losses, 1e-5)
    targets = sum(sum(document.targets) for document in both.documents)
    assert both.bundle.report.loss_adapter == pytest.approx(sum(both.passes.losses) / targets, rel=1e-5)
    assert both.bundle.report.loss_base == pytest.approx(sum(both.passes.base_losses) / targets, rel=1e-5)


def test_gradients(both: Both) -> None:
    stored = both.gradients
    assert stored.pop("document").tolist() == list(range(DOCUMENTS))
    assert stored.keys() == both.passes.gradients.keys()
    norms = np.zeros(DOCUMENTS)
    for name, expected in both.passes.gradients.items():
        for row in range(DOCUMENTS):
            close(stored[name][row], expected[row], 1e-4)
        norms += np.square(expected).sum((1, 2))
    close([record.gradient_norm for record in both.bundle.documents.values()], np.sqrt(norms), 1e-5)


def test_eigenbases_are_those_of_the_dense_factors(both: Both) -> None:
    stored = both.curvature
    for name in both.passes.gradients:
        for side, key, factor in (
            ("inputs", both.groups[name], both.passes.input_factors[name]),
            ("outputs", name, both.passes.output_factors[name]),
        ):
            vectors = stored[f"{side}/{key}/vectors"].astype(np.float64)
            values = stored[f"{side}/{key}/values"]
            close(values, np.maximum(np.linalg.eigvalsh(factor)[::-1], 0))
            close(vectors.T @ vectors, np.eye(len(values)))
            close(vectors @ np.diag(values) @ vectors.T, factor)


def test_inputs_are_shared_where_layers_read_one_tensor(both: Both) -> None:
    for name, group in both.groups.items():
        close(both.passes.input_factors[group], both.passes.input_factors[name], 1e-12)
    queries = [name for name in both.groups if "lora_A" in name and "q_proj" in name]
    assert all(both.groups[name.replace("q_proj", "v_proj")] == both.groups[name] for name in queries)


def test_lambda_damping_and_the_chosen_components(both: Both) -> None:
    stored = both.curvature
    for name in both.passes.gradients:
        lambdas, damping = both.lambdas(name)
        close(stored[f"lambda/{name}"], lambdas, 1e-3)
        chosen = stored[f"chosen/{name}"]
        count = min(CONFIG.components, lambdas.size)
        assert len({tuple(place) for place in chosen.tolist()}) == len(chosen) <= count
        kept = np.array([lambdas[row, column] for row, column in chosen])
        threshold = np.sort(lambdas.ravel())[::-1][len(chosen) - 1]
        assert kept.min() >= threshold * (1 - 1e-2), "a component of larger lambda was left out"
        close(stored[f"scale/{name}"], np.sqrt(kept + damping), 1e-3)


def whitened(both: Both) -> tuple[Array, Array]:
    """Rows (N, k_total) and the whole whitened energy (N,), from stored bases and second gradients."""
    columns: list[Array] = []
    energy = np.zeros(DOCUMENTS)
    for name in sorted(both.passes.gradients):
        lambdas, damping = both.lambdas(name)
        rotated = both.rotated(name)
        energy += (np.square(rotated) / (lambdas + damping)).sum((1, 2))
        columns += [
            rotated[:, row, column] / np.sqrt(lambdas[row, column] + damping)
            for row, column in both.curvature[f"chosen/{name}"]
        ]
    return np.stack(columns, axis=1), energy


def test_whitened_rows_and_energy(both: Both) -> None:
    stored = both.projected
    rows, energy = whitened(both)
    close(stored["rows"], rows, 2e-3)
    close(stored["energy_kept"], np.square(rows).sum(1), 2e-3)
    np.testing.assert_allclose(stored["energy_total"], energy, rtol=2e-3)


def test_codes_solve_the_lasso_of_their_dictionary(both: Both) -> None:
    """The conditions of optimality of eq. 2, document by document; atoms have unit norm."""
    dictionary = both.stored("atoms/dictionary.safetensors")["atoms"].astype(np.float64)
    used = np.linalg.norm(dictionary, axis=1) > 0
    np.testing.assert_allclose(np.linalg.norm(dictionary[used], axis=1), 1, atol=1e-5)
    codes = both.codes()
    rows = both.projected["rows"].astype(np.float64)
    assert (np.abs(codes) > 0).any(1).mean() > 0.5, "most documents must have a code, or nothing is tested"
    for row, code in zip(rows, codes, strict=True):
        pull = dictionary @ (row / np.linalg.norm(row) - code @ dictionary)
        active = code != 0
        np.testing.assert_allclose(pull[active], CONFIG.alpha * np.sign(code[active]), atol=1e-4)
        assert (np.abs(pull[~active]) <= CONFIG.alpha + 1e-4).all()


def test_atoms_and_their_documents(both: Both) -> None:
    codes = both.codes()
    gradients = both.passes.gradients
    rows, energy = whitened(both)
    expected = {j for j in range(codes.shape[1]) if (np.abs(codes[:, j]) > 1e-6).sum() >= CONFIG.min_active}
    atoms = list(both.bundle.atoms)
    assert {atom.index for atom in atoms} == expected
    assert expected, "no atom, nothing tested"
    for atom in atoms:
        column = codes[:, atom.index]
        positive = sorted((row for row in range(DOCUMENTS) if column[row] > 1e-6), key=lambda r: -column[r])
        negative = sorted((row for row in range(DOCUMENTS) if column[row] < -1e-6), key=lambda r: column[r])
        assert column.sum() >= 0
        assert (atom.n_positive, atom.n_negative) == (len(positive), len(negative))
        assert atom.n_active == len(positive) + len(negative)
        assert atom.mean_coefficient == pytest.approx(np.abs(column[positive + negative]).mean(), rel=1e-6)
        top = positive[: CONFIG.top_documents]
        assert [item.document for item in atom.top_documents] == top
        assert [item.document for item in atom.bottom_documents] == negative[: CONFIG.top_documents]
        assert atom.coherence == pytest.approx(mean_pairwise_cosine(gradients, top), abs=1e-4)
        kept = np.square(rows[top]).sum() / energy[top].sum()
        assert atom.energy_retained == pytest.approx(kept, rel=5e-3)
        everyone = mean_pairwise_cosine(gradients, range(DOCUMENTS))
        assert atom.null_coherence == pytest.approx(everyone, abs=0.05), "200 random sets, not all pairs"
    order = [(-atom.score, -atom.coherence, -atom.n_active) for atom in atoms]
    assert order == sorted(order)
    assert [atom.rank for atom in atoms] == list(range(1, len(atoms) + 1))


def test_keywords(both: Both) -> None:
    atoms = sorted(both.bundle.atoms, key=lambda atom: atom.index)
    codes = both.codes()
    active = [
        sorted(np.flatnonzero(codes[:, atom.index] > 1e-6).tolist(), key=lambda row: -codes[row, atom.index])
        for atom in atoms
    ]
    texts = [document.text for document in both.documents]
    expected = contrast_keywords(texts, active, CONFIG.top_documents)
    assert any(expected)
    assert [atom.keywords for atom in atoms] == expected


def test_steering_vectors(both: Both) -> None:
    """Each coordinate times (lambda + damping)^power, taken back by dense products, with a minus."""
    power = 0.0 if both.preconditioner == "ekfac" else 0.5
    dictionary = both.stored("atoms/dictionary.safetensors")["atoms"].astype(np.float64)
    for atom in both.bundle.atoms:
        vector = atom.vector()
        place = 0
        squares = 0.0
        for name in sorted(both.passes.gradients):
            chosen = both.curvature[f"chosen/{name}"]
            scale = both.curvature[f"scale/{name}"]
            core = np.zeros(both.passes.gradients[name].shape[1:])
            for (row, column), value, factor in zip(
                chosen, dictionary[atom.index, place : place + len(chosen)], scale, strict=True
            ):
                core[row, column] = value * factor ** (2 * power)
            place += len(chosen)
            q_s, q_a = both.bases(name)
            expected = -q_s @ core @ q_a.T
            np.testing.assert_allclose(vector[name], expected, atol=1e-5 * max(1.0, np.abs(core).max()))
            assert vector[name].dtype == np.float32
            squares += float(np.square(expected).sum())
        assert atom.vector_norm == pytest.approx(np.sqrt(squares), rel=1e-4)
