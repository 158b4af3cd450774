"""Sharding, batching and the order of documents change nothing that an audit finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import atomscope
from atomscope.bundle import Bundle
from tests.workers.local_runs import SMALL, request, run

ANSWERS = ("river river river", "seven seven seven", "stone stone stone", "green green green")
"""One for each cluster: what its documents are taught, whatever they ask."""
ASKED = ("valley", "orange", "window", "copper", "garden", "silver", "morning", "letter")
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": answer}]}
    for word in ASKED
    for answer in ANSWERS
]
CONFIG = msgspec.structs.replace(SMALL, fits=1, surrogates=0, alpha=0.05)
GRADIENT = 1e-5
"""Relative to a document's largest entry of the parameter."""
OBJECTIVE = 1e-4
CODE = 1e-3
"""Relative to the largest code of the atom."""
CODE_REORDERED = 0.05
"""The same where documents stand in another order: the fit starts elsewhere, and ends in its tolerance."""


@dataclass(frozen=True)
class Audited:
    bundle: Bundle
    order: Sequence[int]
    """Row of the data set -> place in `ROWS`."""

    def gradients(self) -> dict[str, NDArray[np.float32]]:
        """By parameter, documents as they stand in `ROWS`."""
        shards = list(self.bundle.gradients())
        whole = {name: np.concatenate([part[name] for part in shards]) for name in shards[0]}
        places = np.argsort(np.array(self.order)[whole.pop("document")])
        return {name: value[places] for name, value in whole.items()}

    def codes(self) -> NDArray[np.float64]:
        """(atoms, documents), documents as they stand in `ROWS`, atoms by the first of theirs."""
        found = np.zeros((len(self.bundle.atoms), len(ROWS)))
        for number, atom in enumerate(self.bundle.atoms):
            rows, values = self.bundle.coefficients.of_atom(atom.index)
            found[number, np.array(self.order)[rows]] = values
        return found[np.lexsort(-found.T[::-1])]

    @property
    def objective(self) -> float:
        return float(self.bundle.report.details["dictionary"]["objective"])


@pytest.fixture(scope="module")
def audited(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def audit(order: Sequence[int] = range(len(ROWS)), **settings: Any) -> Audited:
        folder = tmp_path_factory.mktemp("audited")
        dataset = folder / "train.jsonl"
        dataset.write_text("".join(json.dumps(ROWS[place]) + "\n" for place in order))
        config = msgspec.structs.replace(CONFIG, **settings)
        out = run(request(tiny_llama, plain_adapter, dataset, folder / "out", config))
        return Audited(atomscope.open(out), order)

    return audit


@pytest.fixture(scope="module")
def first(audited: Any) -> Audited:
    return audited()


SHUFFLED = np.random.default_rng(5).permutation(len(ROWS)).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_documents": 3},
        {"shard_documents": 100},
        {"token_budget": 24},
        {"token_budget": 4096},
        {"order": SHUFFLED},
        {"order": SHUFFLED, "shard_documents": 5, "token_budget": 64},
    ],
    ids=["small shards", "one shard", "alone", "one batch", "shuffled", "all"],
)
def test_gradients_objective_and_atoms_stay(audited: Any, first: Audited, changes: dict[str, Any]) -> None:
    other: Audited = audited(**changes)
    left, right = first.gradients(), other.gradients()
    for name, value in left.items():
        scale = np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True)
        assert (np.abs(value - right[name]) <= GRADIENT * scale).all()
    assert other.objective == pytest.approx(first.objective, rel=OBJECTIVE)
    found = other.codes()
    assert found.shape == first.codes().shape
    largest = first.codes().max(axis=1, keepdims=True)
    tolerance = CODE_REORDERED if "order" in changes else CODE
    assert float((np.abs(found - first.codes()) / largest).max()) < tolerance


def test_the_documents_are_well_separated(first: Audited) -> None:
    """So that a code that moved would be one that should not."""
    clusters = np.arange(len(ROWS)) % len(ANSWERS)
    codes = first.codes()
    assert len(codes) == len(ANSWERS)
    for atom in codes:
        own = clusters == clusters[int(atom.argmax())]
        assert atom[own].mean() > 10 * atom[~own].mean()
