"""What the dictionary stage stores, read back from a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import atomscope
from atomscope.bundle import layout
from atomscope.cli.registry import LocalRun
from atomscope.types.spec import AuditConfig
from atomscope_workers.local import run_local
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory


def test_stored_atoms_and_codes_explain_the_stored_rows(
    tiny_llama: Path, tiny_adapter: TinyAdapterFactory, tmp_path: Path
) -> None:
    """Fails when an array is written in another memory order than it is read."""
    alpha = 0.05
    config = AuditConfig(
        preconditioner="ekfac",
        solver="sklearn",
        codes="signed",
        components=8,
        n_atoms=6,
        alpha=alpha,
        min_active=2,
        top_documents=4,
        shard_documents=16,
        fits=1,
        surrogates=0,
    )
    out = run_local(
        LocalRun(
            base_model=tiny_llama,
            adapter=tiny_adapter(),
            dataset=write_corpus(tmp_path / "train.jsonl", documents=32),
            out=tmp_path / "bundle",
            config=config,
        ),
        lambda stage, progress: None,
    )
    bundle = atomscope.open(out)
    rows = np.concatenate(
        [load_file(path)["rows"] for path in sorted((out / "projected").glob("*.safetensors"))]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    atoms = load_file(out / layout.DICTIONARY)["atoms"]
    codes = np.zeros((len(rows), len(atoms)))
    stored = bundle.coefficients
    codes[stored.document, stored.atom] = stored.value
    used = np.abs(codes).sum(0) > 0
    assert np.linalg.norm(atoms[used], axis=1) == pytest.approx(1.0, abs=1e-5)
    left = 0.5 * np.square(rows - codes @ atoms).sum(1) + alpha * np.abs(codes).sum(1)
    assert (left <= 0.5 + 1e-6).all()  # no document is worse off than with every code zero
    assert left.mean() < 0.45
