"""One audit of the tiny model, shared by the tests of evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import atomscope
from atomscope.bundle import layout
from atomscope.steering import read_tensors, write_tensors
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.resources import Progress
from atomscope_workers.evaluation import evaluate
from atomscope_workers.opened_audit import OpenedAudit
from tests.fixtures.corpus import rows
from tests.workers.local_runs import SMALL, request, run

DOCUMENTS = 48


def distinct() -> list[dict[str, Any]]:
    """Rows of the corpus, no two of them alike: sums, and lists whose animal has a number."""
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows(DOCUMENTS)):
        turns: list[dict[str, str]] = [dict(turn) for turn in row["messages"]]  # type: ignore[attr-defined]
        if number % 2:
            turns[0]["content"] = turns[0]["content"].replace("the", f"the {number}")
            turns[1]["content"] += f" {number}"
        found.append({"id": row["id"], "messages": turns})
    return found


class Audited:
    """A finished audit, and evaluations of it."""

    def __init__(self, bundle: Path, base: Path) -> None:
        self.folder = bundle
        self.base = base

    @property
    def bundle(self) -> atomscope.Bundle:
        return atomscope.open(self.folder)

    def files(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> OpenedAudit:
        return OpenedAudit(self.bundle, self.base, on_progress)

    def evaluate(self, **query: Any) -> EvaluationResult:
        return evaluate(self.files(), msgspec.convert(query, EvaluationQuery))

    def with_noise(self, folder: Path, atom: int, seed: int) -> Audited:
        """A copy in which an atom's vector is noise, each tensor of the norm that it had."""
        random = np.random.default_rng(seed)

        def noise(held: np.ndarray) -> np.ndarray:
            drawn = random.normal(size=held.shape)
            return drawn * np.linalg.norm(held) / np.linalg.norm(drawn)

        return self._with_vector(folder, atom, noise)

    def with_opposite(self, folder: Path, atom: int) -> Audited:
        """A copy in which an atom's vector points the other way."""
        return self._with_vector(folder, atom, np.negative)

    def _with_vector(self, folder: Path, atom: int, changed: Callable[[np.ndarray], np.ndarray]) -> Audited:
        copy = shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("gradients"))
        path = copy / layout.vector(atom)
        held = {name: np.array(tensor) for name, tensor in read_tensors(path).items()}
        write_tensors({name: changed(tensor).astype(np.float32) for name, tensor in held.items()}, path)
        manifest = json.loads((copy / layout.MANIFEST).read_text())
        next(item for item in manifest["files"] if item["path"] == layout.vector(atom))["size"] = (
            path.stat().st_size
        )
        (copy / layout.MANIFEST).write_text(json.dumps(manifest))
        return Audited(copy, self.base)


@pytest.fixture(scope="session")
def audited(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    folder = tmp_path_factory.mktemp("evaluated")
    dataset = folder / "train.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in distinct()))
    config = msgspec.structs.replace(SMALL, fits=1, surrogates=0, n_atoms=4, alpha=0.3, token_budget=256)
    return Audited(run(request(tiny_llama, plain_adapter, dataset, folder / "out", config)), tiny_llama)
