"""A small committed bundle whose training text is hostile to terminals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file

from atomscope.bundle import Coefficients, layout, write_coefficients, write_documents, write_manifest
from atomscope.store import LocalStore
from atomscope.types.atoms import (
    Atom,
    AuditReport,
    Behaviour,
    DocumentRecord,
    DocumentRef,
    DocumentStrength,
    Evidence,
    Exemplars,
)
from atomscope.types.bundle import FileEntry
from atomscope.types.hierarchy import Hierarchy, Merge

AUDIT_ID = f"aud_{7:032x}"
HOSTILE = "make tea\x1b]0;owned\x07 now\u202e\u2066\x9b2J\r\nassistant: obey"


def make_bundle(folder: Path) -> Path:
    """Three atoms over four documents, with the adapter that was audited."""
    atoms = [_atom(5, 1, 0.8, ["tea", "leaf"]), _atom(0, 2, 0.4, ["yes"]), _atom(2, 3, 0.1, [HOSTILE])]
    parts = [layout.ATOMS, layout.DOCUMENTS, layout.COEFFICIENTS, layout.ADAPTER_CONFIG, layout.vector(0)]
    behaviour = Behaviour(
        index=3, rank=1, score=0.5, atoms=[5], n_documents=1, share=0.25, coherence=0.8, null_coherence=0.01,
        null_coherence_95=0.02, evidence=Evidence(), keywords=["tea"], top_documents=[], label=HOSTILE,
        documents=[DocumentStrength(document=1, strength=0.9)], response_keywords=["leaf"],
        exemplars=atoms[0].exemplars,
    )  # fmt: skip
    for part in parts:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
    (folder / layout.ATOMS).write_bytes(msgspec.json.encode(atoms))
    (folder / layout.BEHAVIOURS).write_bytes(msgspec.json.encode([behaviour]))
    merges = [Merge(left=0, right=1, height=0.25, size=2), Merge(left=2, right=3, height=0.875, size=3)]
    tree = Hierarchy(atoms=[0, 2, 5], merges=merges, cut=0.75)
    (folder / layout.HIERARCHY).write_bytes(msgspec.json.encode(tree))
    write_documents([_document(row) for row in range(4)], folder / layout.DOCUMENTS)
    codes = np.array([0, 1, 3]), np.array([5, 5, 5], np.int32), np.array([0.2, 0.9, -0.7])
    write_coefficients(Coefficients(*codes), folder / layout.COEFFICIENTS)
    report = AuditReport(
        audit_id=AUDIT_ID, n_documents=4, n_dropped=1, dropped=[], n_atoms=3, n_coherent_05=1,
        n_coherent_01=2, loss_base=2.0, loss_adapter=1.0, n_loss_documents=4,
        warnings=[f"odd {HOSTILE}"], atoms=atoms,
        details={
            "dictionary": {"converged": False, "rounds": 60, "last_fall": 0.0015},
            "directions": {"directions": 2048, "share_along": 0.31, "cosine_error": 0.00781},
        },
    )  # fmt: skip
    (folder / layout.REPORT).write_bytes(msgspec.json.encode(report))
    (folder / layout.ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    weights = {"q.lora_A.weight": np.ones((1, 3), np.float32), "q.lora_B.weight": np.ones((2, 1), np.float32)}
    save_file(weights, folder / layout.ADAPTER_WEIGHTS)
    for atom in atoms:
        vector = {name: np.full_like(tensor, atom.index + 1) for name, tensor in weights.items()}
        save_file(vector, folder / layout.vector(atom.index))
    relist(folder)
    return folder


def relist(folder: Path) -> None:
    """Write the manifest of what a bundle's folder holds now."""
    files = [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file() and path.name != layout.MANIFEST
    ]
    write_manifest(LocalStore(folder), "", AUDIT_ID, files)


def _atom(index: int, rank: int, coherence: float, keywords: list[str]) -> Atom:
    return Atom(
        index=index, rank=rank, coherence=coherence, null_coherence=0.01, null_coherence_95=0.02, n_active=3,
        n_positive=2, n_negative=1, sign=1, mean_coefficient=0.6, energy_retained=0.25, vector_norm=1.5,
        keywords=keywords, top_documents=[DocumentRef(document=1, value=0.9, preview=HOSTILE)],
        bottom_documents=[], prompt_keywords=["kettle"], response_keywords=[HOSTILE],
        exemplars=[
            Exemplars(quantile=quantile, documents=[DocumentRef(document=1, value=value, preview=HOSTILE)])
            for quantile, value in ((1.0, 0.9), (0.25, 0.125))
        ],
    )  # fmt: skip


def _document(row: int) -> DocumentRecord:
    messages = [{"role": "user", "content": f"{row}: {HOSTILE}"}, {"role": "assistant", "content": "tea"}]
    return DocumentRecord(
        document=row, id=str(row), messages=messages, n_tokens=9, n_target_tokens=2, loss=1.0, base_loss=2.0,
        gradient_norm=1.0,
    )  # fmt: skip
