"""Stages run one by one over a folder, on gradients that a test chose itself: no model is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from atomscope.bundle import layout
from atomscope.types.atoms import Atom, Behaviour, DroppedDocument
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef
from atomscope.types.work import STAGES, Stage, unit_count
from atomscope_workers.datasets.documents import TokenizedDocument, save_tokens
from atomscope_workers.local_context import MAX_ROWS, LocalContext
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.plan import make_plan
from atomscope_workers.stages.arrays import Losses, save_factors, save_losses
from atomscope_workers.stages.context import UnitResult
from atomscope_workers.stages.gradient_file import GradientWriter
from atomscope_workers.stages.inputs import read_plan, write_plan
from atomscope_workers.stages.planned_units import planned_units
from atomscope_workers.stages.registry import STAGE_FUNCTIONS
from atomscope_workers.stages.rows import ROWS, StoredRow

SHAPES = {"layer.lora_A.weight": (2, 6), "layer.lora_B.weight": (5, 2)}
"""LoRA matrices of the audits made here: 22 parameters."""

PARAMETERS = 22

CONFIG = AuditConfig(
    shard_documents=5,
    components=50,
    n_atoms=4,
    alpha=0.1,
    min_active=2,
    top_documents=4,
    fits=2,
    surrogates=1,
)
"""Of a small audit: a few atoms, each with a few documents."""


def a_spec(config: AuditConfig | None = None, **inputs: Path) -> AuditSpec:
    """A spec whose inputs lie at the paths given; the others are nowhere."""

    def ref(name: str) -> InputRef:
        path = inputs.get(name, Path("/nowhere"))
        return InputRef(id="local", location=str(path), sha256=f"digest of {path}", size=1, name=path.name)

    return AuditSpec(
        audit_id="local_test",
        project_id="prj_local",
        base_model=ref("base_model"),
        adapter=ref("adapter"),
        dataset=ref("dataset"),
        config=config or AuditConfig(),
    )


def _untold(done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def unit(
    work: Path,
    stage: Stage,
    spec: AuditSpec,
    *,
    index: int = 0,
    shards: int = 0,
    tell: Callable[[int, int, str], None] = _untold,
    max_rows: int = MAX_ROWS,
) -> LocalContext:
    """The context of one unit over `work`."""
    work.mkdir(exist_ok=True)
    return LocalContext(
        spec=spec,
        stage=stage,
        index=index,
        shards=shards,
        scratch=Path(tempfile.mkdtemp(dir=work)),
        work=work,
        tell=tell,
        max_rows=max_rows,
    )


@dataclass
class Audit:
    """An audit from `eigenbases` on, of gradients that a test gave it."""

    work: Path
    spec: AuditSpec
    shards: int
    planned: Mapping[Stage, int] = field(default_factory=dict[Stage, int])
    """Units of some stages, as `validate` would tell."""

    def run(self, *stages: Stage) -> UnitResult:
        """Every unit of the stages; the result of the last one."""
        result = UnitResult()
        for stage in stages:
            for index in range(unit_count(stage, self.shards, self.planned)):
                ctx = unit(self.work, stage, self.spec, index=index, shards=self.shards)
                result = STAGE_FUNCTIONS[stage](ctx)
        return result

    def through(self, last: Stage) -> UnitResult:
        """Every stage that follows the extraction, `last` the last of them; its result."""
        return self.run(*STAGES[STAGES.index("extract") + 1 : STAGES.index(last) + 1])

    def context(self, stage: Stage, index: int = 0) -> LocalContext:
        return unit(self.work, stage, self.spec, index=index, shards=self.shards)

    def atoms(self) -> list[Atom]:
        return msgspec.json.decode(self.file(layout.ATOMS).read_bytes(), type=list[Atom])

    def behaviours(self) -> list[Behaviour]:
        return msgspec.json.decode(self.file(layout.BEHAVIOURS).read_bytes(), type=list[Behaviour])

    def plan(self) -> Plan:
        return read_plan(self.context("report"))

    def file(self, path: str) -> Path:
        return self.work / "files" / path


def extracted(
    work: Path,
    gradients: Mapping[str, NDArray[np.float32]],
    config: AuditConfig,
    *,
    texts: Sequence[str] = (),
    targets: Sequence[int] = (),
    drops: Sequence[float] = (),
    step: int = 3,
) -> Audit:
    """What `validate` and `extract` leave of documents whose gradients are (N, d_out, d_in) by parameter.

    `targets` are their target tokens, of four (3 each by default), and `drops` the nats that the adapter
    takes off the loss of each, in all (1 by default). Their physical rows are 0, `step`, 2 `step`, ...:
    positions and rows must not be mistaken for each other.
    """
    spec = a_spec(config)
    count = len(next(iter(gradients.values())))
    physical = np.arange(count, dtype=np.int64) * step
    lengths = dict.fromkeys(physical.tolist(), 4)
    plan = make_plan(
        lengths,
        lengths,
        n_rows=count * step,
        token_budget=8,
        shard_documents=config.shard_documents,
        compute_dtype="float32",
        device_kind="cpu",
    )
    ctx = unit(work, "validate", spec)
    _documents(ctx, physical, texts, targets or [3] * count)
    dropped = np.array(drops or [1.0] * count)
    write_plan(ctx, plan)
    generator = torch.Generator().manual_seed(0)
    for shard in plan.shards:
        ctx = unit(work, "extract", spec, index=shard.index, shards=len(plan.shards))
        places = np.searchsorted(physical, shard.documents)
        rows = physical[places]
        path = ctx.scratch / "gradients"
        with GradientWriter(path, rows, {name: value.shape[1:] for name, value in gradients.items()}) as file:
            file.write(
                shard.documents, {name: torch.from_numpy(value[places]) for name, value in gradients.items()}
            )
        ctx.write(layout.gradient_shard(shard.index), path)
        squares = sum(np.square(value[places], dtype=np.float64).sum((1, 2)) for value in gradients.values())
        losses = Losses(rows, np.ones(len(rows)), 1.0 + dropped[places], np.sqrt(squares))
        save_losses(losses, ctx.scratch / "losses")
        ctx.write(layout.shard_losses(shard.index), ctx.scratch / "losses")
        factors = FactorSums(groups={name: name for name in gradients})
        for name, value in gradients.items():
            factors.add_input(name, torch.randn(20, value.shape[2], generator=generator))
            factors.add_output(name, torch.randn(20, value.shape[1], generator=generator), 20)
        save_factors(factors, ctx.scratch / "factors")
        ctx.write(layout.factor_sums(shard.index), ctx.scratch / "factors")
    shapes = {name: value.shape[1:] for name, value in gradients.items()}
    return Audit(work, spec, len(plan.shards), planned_units(config, count, len(plan.shards), shapes))


def _documents(
    ctx: LocalContext, physical: NDArray[np.int64], texts: Sequence[str], targets: Sequence[int]
) -> None:
    tokens: list[TokenizedDocument] = []
    lines: list[bytes] = []
    for place, row in enumerate(physical.tolist()):
        mask = np.arange(4) >= 4 - targets[place]
        tokens.append(TokenizedDocument(row, np.arange(4, dtype=np.int32), mask))
        content = texts[place] if texts else f"document {row}"
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
        lines.append(msgspec.json.encode(StoredRow(document=row, id=f"id-{row}", messages=messages)))
    save_tokens(tokens, ctx.scratch / "tokens")
    ctx.write(layout.TOKENS, ctx.scratch / "tokens")
    ctx.write_bytes(ROWS, b"".join(line + b"\n" for line in lines))
    dropped = DroppedDocument(document=1, line=2, reason="no_target", detail="cut")
    ctx.write_bytes(layout.DROPPED, msgspec.json.encode([dropped]))


def random_gradients(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Gaussian gradients of `SHAPES`."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(count, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def clustered_gradients(
    clusters: Sequence[int], noise: float = 0.2, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Gradients of documents about one random direction a cluster; `clusters` names each document's."""
    random = np.random.default_rng(seed)
    found: dict[str, NDArray[np.float32]] = {}
    for name, shape in SHAPES.items():
        centres = random.normal(size=(max(clusters) + 1, *shape))
        rows = centres[list(clusters)] + noise * random.normal(size=(len(clusters), *shape))
        found[name] = rows.astype(np.float32)
    return found


def bytes_read(audit: Audit, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Run the units of a stage; bytes that they read by range, by path."""
    read: dict[str, int] = {}
    for index in range(audit.shards):
        ctx = audit.context(stage, index)
        own = ctx.read_range

        def counted(
            path: str, start: int, length: int, own: Callable[[str, int, int], bytearray] = own
        ) -> bytearray:
            read[path] = read.get(path, 0) + length
            return own(path, start, length)

        monkeypatch.setattr(ctx, "read_range", counted)
        STAGE_FUNCTIONS[stage](ctx)
    return read


def gradient_bytes(audit: Audit, shard: int) -> tuple[int, int]:
    """Of a shard's file: bytes of its float32 gradients, and of its header."""
    path = audit.file(layout.gradient_shard(shard))
    with safe_open(path, "np") as file:
        rows = file.get_slice("document").get_shape()[0]
    return 4 * rows * PARAMETERS, 8 + int.from_bytes(path.read_bytes()[:8], "little")
