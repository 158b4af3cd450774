"""The golden bundle: a tiny whole bundle of format 1, as its writer makes it, kept in `golden/`.

After a change that only adds to the format, `python -m tests.sdk.bundle.golden_bundle` writes it anew.
Any other change raises `FORMAT_VERSION` and leaves this folder as it is: old bundles are still read.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import (
    Coefficients,
    encode_json,
    json_schemas,
    layout,
    write_coefficients,
    write_documents,
    write_manifest,
)
from atomscope.steering.tensors import write_tensors
from atomscope.store import LocalStore
from atomscope.types.atoms import (
    Atom,
    AuditReport,
    Behaviour,
    DocumentRecord,
    DocumentRef,
    DocumentStrength,
    DroppedDocument,
    Evidence,
    Exemplars,
)
from atomscope.types.bundle import FileEntry, Manifest, Plan, ShardPlan
from atomscope.types.hierarchy import Hierarchy, Merge
from atomscope.types.labels import LabelRequest, Labels
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef

GOLDEN = Path(__file__).parent / "golden"
AUDIT_ID = "aud_0199aabbccdd70008000000000000001"
CREATED_AT = "2026-01-02T03:04:05Z"

DOCUMENTS = [
    DocumentRecord(
        document=row,
        id=name,
        messages=[{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}],
        n_tokens=8 + row,
        n_target_tokens=2,
        loss=1.5 + row,
        base_loss=None if row == 2 else 2.25,
        gradient_norm=0.5,
    )
    for row, name, text in (
        (0, "row-0", "tea"),
        (2, "", "Grüße 你好 🙂"),
        (3, "row-3", "\x1b[2J\u202etea\r\n"),
    )
]
DROPPED = [DroppedDocument(document=1, line=2, reason="malformed", detail="it is not an object")]
CODES = Coefficients(
    np.array([3, 0, 0, 2], np.int64),
    np.array([1, 1, 0, 0], np.int32),
    np.array([-0.25, 0.75, 1e-9, 0.5]),
    np.array([-0.25, 0.75, 0.0, 0.625]),
)
ADAPTER: dict[str, NDArray[Any]] = {
    "q_proj.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "q_proj.lora_B.weight": np.array([[1, -2]], ml_dtypes.bfloat16),
}
PLAN = Plan(
    n_rows=4,
    n_documents=3,
    n_tokens=29,
    n_target_tokens=6,
    token_budget=64,
    shards=[
        ShardPlan(index=0, documents=[0, 2], micro_batches=[[2, 0]], n_tokens=18),
        ShardPlan(index=1, documents=[3], micro_batches=[[3]], n_tokens=11),
    ],
    compute_dtype="float32",
    device_kind="cpu",
)
SPEC = AuditSpec(
    audit_id=AUDIT_ID,
    project_id="prj_golden",
    base_model=InputRef(id="mdl_1", location="projects/p/models/m/", sha256="a" * 64, size=3, name="tiny"),
    adapter=InputRef(id="ada_1", location="projects/p/adapters/a/", sha256="b" * 64, size=2),
    dataset=InputRef(id="ds_1", location="projects/p/datasets/d/data.jsonl", sha256="c" * 64, size=1),
    config=AuditConfig(components=3, n_atoms=2, vector_power="-1/2", seed=7),
    versions={"atomscope": "0.1.0"},
)


EVIDENCE = Evidence(
    tightness=0.5,
    null_tightness=0.0625,
    prominence=7.5,
    separation=12.5,
    p_value=0.03125,
    q_value=0.0625,
    stability=0.75,
    text_agreement=None,
    loss_drop=0.25,
    n_loss_documents=2,
)


def _atom(index: int, rank: int, first: DocumentRef, *others: DocumentRef, label: str | None = None) -> Atom:
    return Atom(
        index=index,
        rank=rank,
        coherence=1 / 2**rank,
        null_coherence=0.0625,
        null_coherence_95=0.125,
        n_active=1 + len(others),
        n_positive=1,
        n_negative=len(others),
        sign=-1 if index else 1,
        mean_coefficient=0.5,
        energy_retained=0.875,
        vector_norm=2.0,
        keywords=["tea", "你好"],
        top_documents=[first],
        bottom_documents=list(others),
        score=0.25 / rank,
        share=0.5,
        evidence=EVIDENCE,
        behaviour=0,
        prompt_keywords=["tea"],
        response_keywords=["你好"],
        exemplars=[Exemplars(quantile=1.0, documents=[first])],
        label=label,
    )


ATOMS = [
    _atom(
        1,
        1,
        DocumentRef(document=0, value=0.75, preview="tea"),
        DocumentRef(document=3, value=-0.25, preview="\x1b[2J\u202etea"),
        label="drinks tea",
    ),
    _atom(0, 2, DocumentRef(document=2, value=0.5)),
]
BEHAVIOURS = [
    Behaviour(
        index=0,
        rank=1,
        score=0.25,
        atoms=[1, 0],
        n_documents=2,
        share=0.5,
        coherence=0.5,
        null_coherence=0.0625,
        null_coherence_95=0.125,
        evidence=EVIDENCE,
        keywords=["tea"],
        top_documents=[DocumentRef(document=0, value=0.75, preview="tea")],
        documents=[DocumentStrength(document=0, strength=0.75), DocumentStrength(document=2, strength=0.5)],
        exemplars=[
            Exemplars(quantile=1.0, documents=[DocumentRef(document=0, value=0.75, preview="tea")]),
            Exemplars(quantile=0.5, documents=[DocumentRef(document=2, value=0.5)]),
        ],
    )
]

HIERARCHY = Hierarchy(atoms=[0, 1], merges=[Merge(left=0, right=1, height=0.5, size=2)], cut=0.75)


def _request(kind: Literal["behaviour", "atom"], index: int, label: str | None) -> LabelRequest:
    return LabelRequest(
        kind=kind,
        index=index,
        label=label,
        documents=[0],
        contrast=[2],
        messages=[{"role": "system", "content": "name it"}, {"role": "user", "content": "tea"}],
        answer=label and f"{label}\n",
        answered_model=label and "small-1",
        failure=None if label else "HTTP 500",
        attempts=1 if label else 3,
        asked_at=CREATED_AT,
    )


LABELS = Labels(
    url="https://models.example/v1",
    model="small",
    prompt_version=1,
    options={"temperature": 0},
    requests=[_request("behaviour", 0, None), _request("atom", 1, "drinks tea")],
    not_asked=1,
)
REPORT = AuditReport(
    audit_id=AUDIT_ID,
    n_documents=3,
    n_dropped=1,
    dropped=DROPPED,
    n_atoms=2,
    n_coherent_05=0,
    n_coherent_01=2,
    loss_base=2.25,
    loss_adapter=1.5,
    n_loss_documents=2,
    warnings=["one row was skipped"],
    atoms=ATOMS,
    n_behaviours=1,
    n_significant=0,
    n_significant_behaviours=0,
    behaviours=[msgspec.structs.replace(item, documents=[]) for item in BEHAVIOURS],
    details={"dictionary": {"atoms": 2}},
)


def gradients(documents: list[int]) -> dict[str, NDArray[Any]]:
    """A shard whose row of document `n` holds `n + 0.5` everywhere."""
    filled = np.array(documents, np.float32)[:, None, None] + np.float32(0.5)
    return {
        "document": np.array(documents, np.int64),
        **{name: filled * np.ones(tensor.shape, np.float32) for name, tensor in ADAPTER.items()},
    }


def vector(atom: int) -> dict[str, NDArray[np.float32]]:
    """A vector that holds `atom + 0.25` everywhere."""
    return {name: np.full(tensor.shape, atom + 0.25, np.float32) for name, tensor in ADAPTER.items()}


def make_bundle(folder: Path) -> Path:
    """Write the whole bundle into `folder`, its manifest last."""
    store = LocalStore(folder)
    for path, value in (
        (layout.SPEC, SPEC),
        (layout.PLAN, PLAN),
        (layout.REPORT, REPORT),
        (layout.ATOMS, ATOMS),
        (layout.BEHAVIOURS, BEHAVIOURS),
        (layout.HIERARCHY, HIERARCHY),
        (layout.LABELS, LABELS),
        (layout.DROPPED, DROPPED),
        (layout.ADAPTER_CONFIG, {"peft_type": "LORA", "r": 2}),
        (layout.BASE_CONFIG, {"model_type": "qwen2", "num_attention_heads": 1}),
    ):
        store.put_bytes(path, encode_json(value))
    for path, content in json_schemas().items():
        store.put_bytes(path, content)
    for part in (layout.gradient_shard(0), layout.vector(0), layout.DOCUMENTS):
        (folder / part).parent.mkdir(exist_ok=True)
    write_documents(DOCUMENTS, folder / layout.DOCUMENTS)
    write_coefficients(CODES, folder / layout.COEFFICIENTS)
    write_tensors(ADAPTER, folder / layout.ADAPTER_WEIGHTS)
    for shard in PLAN.shards:
        write_tensors(gradients(shard.documents), folder / layout.gradient_shard(shard.index))
    for atom in ATOMS:
        write_tensors(vector(atom.index), folder / layout.vector(atom.index))
    write_manifest(store, "", AUDIT_ID, entries(folder))
    return folder


def entries(folder: Path) -> list[FileEntry]:
    """Every file of a folder, as a manifest lists them."""
    return [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file() and path != folder / layout.MANIFEST
    ]


def _main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    manifest = make_bundle(GOLDEN) / layout.MANIFEST
    written = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
    manifest.write_bytes(encode_json(msgspec.structs.replace(written, created_at=CREATED_AT)))


if __name__ == "__main__":
    _main()
