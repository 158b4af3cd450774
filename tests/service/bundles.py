"""A small audit bundle: 12 documents, 3 atoms, an adapter of two parameters."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save

from atomscope.bundle import Coefficients, layout, write_coefficients, write_documents, write_manifest
from atomscope.store import ObjectStore
from atomscope.types.atoms import (
    Atom,
    AuditReport,
    Behaviour,
    DocumentRecord,
    DocumentRef,
    DocumentStrength,
    Evidence,
)
from atomscope.types.bundle import FileEntry
from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope_service.db.models import AuditRow
from tests.service.deployment import ADAPTER, Tenant

DOCUMENTS = 12
COHERENCE = {0: 0.2, 1: 0.9, 2: 0.5}
ESCAPES = "\x1b[31m# <script>alert(1)</script>"

HIERARCHY = Hierarchy(
    atoms=[0, 1, 2],
    merges=[Merge(left=0, right=2, height=0.5, size=2), Merge(left=1, right=3, height=0.9, size=3)],
    cut=0.7,
)


def atom(index: int, rank: int) -> Atom:
    return Atom(
        index=index,
        rank=rank,
        coherence=COHERENCE[index],
        null_coherence=0.01,
        null_coherence_95=0.02,
        n_active=5 + index,
        n_positive=4,
        n_negative=1,
        sign=1,
        mean_coefficient=0.3 - index / 10,
        energy_retained=0.8,
        vector_norm=1.0,
        keywords=["alpha", f"word{index}"],
        top_documents=[DocumentRef(document=index, value=1.0, preview=ESCAPES)],
        bottom_documents=[],
    )


def atoms() -> list[Atom]:
    by_rank = sorted(COHERENCE, key=lambda index: -COHERENCE[index])
    return [atom(index, rank) for rank, index in enumerate(by_rank, start=1)]


def behaviours() -> list[Behaviour]:
    """Behaviour 1 of three documents before behaviour 0 of two."""

    def one(index: int, rank: int, rows: list[int]) -> Behaviour:
        return Behaviour(
            index=index,
            rank=rank,
            score=1 / rank,
            atoms=[index],
            n_documents=len(rows),
            share=len(rows) / DOCUMENTS,
            coherence=0.5,
            null_coherence=0.01,
            null_coherence_95=0.02,
            evidence=Evidence(tightness=0.5),
            keywords=["alpha"],
            top_documents=[DocumentRef(document=rows[0], value=1.0, preview=ESCAPES)],
            documents=[
                DocumentStrength(document=row, strength=1.0 - place / 10) for place, row in enumerate(rows)
            ],
        )

    return [one(1, 1, [4, 2, 9]), one(0, 2, [5, 0])]


def coefficients() -> Coefficients:
    """Atom `a`: documents 0 to 6 with falling positive codes, document 7 negative, document 8 inactive."""
    rows, numbers, values = [], [], []
    for number in COHERENCE:
        for row in range(7):
            rows.append(row)
            numbers.append(number)
            values.append(1.0 - row / 10)
        rows += [7, 8]
        numbers += [number, number]
        values += [-0.5, 1e-9]
    return Coefficients(np.array(rows, np.int64), np.array(numbers, np.int32), np.array(values))


def vector(index: int) -> bytes:
    random = np.random.default_rng(index)
    names = ("a.lora_A.weight", "a.lora_B.weight")
    return save({name: random.normal(size=(2, 3)).astype(np.float32) for name in names})


def write_bundle(store: ObjectStore, prefix: str, audit_id: str) -> None:
    """Write the bundle under `prefix`."""
    report = AuditReport(
        audit_id=audit_id,
        n_documents=DOCUMENTS,
        n_dropped=0,
        dropped=[],
        n_atoms=3,
        n_coherent_05=1,
        n_coherent_01=3,
        loss_base=2.0,
        loss_adapter=1.0,
        n_loss_documents=4,
        warnings=[],
        atoms=atoms(),
    )
    records = [
        DocumentRecord(
            document=row,
            id=f"doc-{row}",
            messages=[
                {"role": "user", "content": f"question {row}"},
                {"role": "assistant", "content": ESCAPES},
            ],
            n_tokens=10,
            n_target_tokens=4,
            loss=1.5,
            base_loss=2.5,
            gradient_norm=0.5,
        )
        for row in range(DOCUMENTS)
    ]
    files = {
        layout.ATOMS: msgspec.json.encode(atoms()),
        layout.BEHAVIOURS: msgspec.json.encode(behaviours()),
        layout.HIERARCHY: msgspec.json.encode(HIERARCHY),
        layout.REPORT: msgspec.json.encode(report),
        layout.ADAPTER_CONFIG: ADAPTER["adapter_config.json"],
        layout.ADAPTER_WEIGHTS: ADAPTER["adapter_model.safetensors"],
        **{layout.vector(index): vector(index) for index in COHERENCE},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.parquet")
        write_documents(records, path)
        files[layout.DOCUMENTS] = path.read_bytes()
        write_coefficients(coefficients(), path)
        files[layout.COEFFICIENTS] = path.read_bytes()
    entries: list[FileEntry] = []
    for name, content in files.items():
        store.put_bytes(f"{prefix}{name}", content)
        entries.append(FileEntry(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    write_manifest(store, prefix, audit_id, entries)


def succeeded_audit(tenant: Tenant) -> str:
    """Id of an audit of the tenant that has succeeded, its bundle in the store."""
    audit_id = tenant.insert_audit(status="succeeded", n_atoms=3, n_documents=DOCUMENTS)
    prefix = layout.bundle_prefix(tenant.project_id, audit_id, 1, 1)
    write_bundle(tenant.deployment.store, prefix, audit_id)
    tenant.change(AuditRow, audit_id, bundle_prefix=prefix)
    return audit_id
