"""CPU against CUDA: gradients, inner products, the fit and its evidence, on a small model of random weights.

    python benchmarks/device_check.py

Needs no file. Prints one line for each comparison: how far the device's result is from the CPU's, how far it
may be, and the seconds that each took. Lines that end in "twice" compare two runs on the device, which must
give the same bits. Exits with 0 where every difference is within its tolerance, with 1 where one is not, and
with 3 on a machine without CUDA, where nothing is compared.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from atomscope.types.spec import AuditConfig
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.models.lora import LoraModel, LoraParameter
from atomscope_workers.pipeline.batches import collate
from atomscope_workers.pipeline.curvature import (
    ModuleCurvature,
    choose_components,
    measured_lambda,
    rotations,
    squared_sum,
)
from atomscope_workers.pipeline.dictionary import fit
from atomscope_workers.pipeline.directions import coordinates, sharpened_directions, sketched_directions
from atomscope_workers.pipeline.evidence import p_values, tightness
from atomscope_workers.pipeline.factors import FactorSums
from atomscope_workers.pipeline.findings import find
from atomscope_workers.pipeline.fit import Fit
from atomscope_workers.pipeline.gradients import gradient_pass
from atomscope_workers.pipeline.gram import accumulate_gram
from atomscope_workers.pipeline.plan import micro_batches
from atomscope_workers.pipeline.rotation import turned
from atomscope_workers.pipeline.separation import pulls, separation
from atomscope_workers.pipeline.sketch import sketch_rows
from atomscope_workers.pipeline.span import GramSpan, Span, unit_gram, unit_rows
from atomscope_workers.stages.determinism import deterministic

NO_CUDA = 3
CPU = torch.device("cpu")
DOCUMENTS, VOCABULARY = 48, 97
CONFIG = AuditConfig(alpha=0.1)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Line:
    """One comparison."""

    name: str
    difference: float
    tolerance: float
    seconds: tuple[float, float]
    """On the CPU and on the device."""

    @property
    def passes(self) -> bool:
        return self.difference <= self.tolerance  # a NaN does not


def compare(device: torch.device, fitted_documents: int) -> Iterator[Line]:
    """Every comparison, as it is made; `fitted_documents` is the size of the sets that are fitted."""
    yield from _model_passes(device)
    yield from _whitening(device)
    yield from _fits(device, fitted_documents)
    yield from _evidence(device, fitted_documents)


def _timed(device: torch.device, work: Callable[[torch.device], Result]) -> tuple[Result, float]:
    with deterministic(device):
        start = time.perf_counter()
        found = work(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found, time.perf_counter() - start


def _both(
    device: torch.device, work: Callable[[torch.device], Result]
) -> tuple[Result, Result, Result, tuple[float, float]]:
    """What the CPU gives, what the device gives, what it gives again, and seconds (of its second run)."""
    here, cpu_seconds = _timed(CPU, work)
    there, _ = _timed(device, work)
    again, device_seconds = _timed(device, work)
    return here, there, again, (cpu_seconds, device_seconds)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest magnitude."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


# ---------------------------------------------------------------------- model


def _model(device: torch.device) -> LoraModel:
    """A Llama of random weights, the same on every device; both LoRA matrices are random."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = LlamaForCausalLM(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    parameters: list[LoraParameter] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith((".lora_A.default", ".lora_B.default")):
            torch.nn.init.normal_(module.weight, 0, 0.1)
            parameters.append(LoraParameter(path.removesuffix(".default") + ".weight", module))
    model.requires_grad_(False).eval().to(device)
    ordered = tuple(sorted(parameters, key=lambda item: item.name))
    return LoraModel(model=model, base=base, parameters=ordered, device=device, dtype=torch.float32)


def _documents() -> list[TokenizedDocument]:
    random = np.random.default_rng(0)
    found: list[TokenizedDocument] = []
    for row in range(DOCUMENTS):
        length = int(random.integers(8, 65))
        mask = np.arange(length) >= int(random.integers(1, length - 1))
        ids = random.integers(0, VOCABULARY, length).astype(np.int32)
        found.append(TokenizedDocument(document=row, input_ids=ids, target_mask=mask))
    return found


@dataclass(frozen=True)
class _Passed:
    gradients: dict[str, torch.Tensor]
    """Parameter -> (N, d_out, d_in), on the CPU."""
    losses: torch.Tensor
    factors: FactorSums


def _passed(device: torch.device) -> _Passed:
    lora, documents, factors = _model(device), _documents(), FactorSums()
    lengths = {item.document: item.read for item in documents}
    rows: dict[int, dict[str, torch.Tensor]] = {}
    losses = torch.zeros(DOCUMENTS, dtype=torch.float64)
    with gradient_pass(lora, factors) as run:
        for batch in micro_batches(list(lengths), lengths, 512, device.type):
            result = run(collate([documents[row] for row in batch], device))
            for place, row in enumerate(batch):
                rows[row] = {name: value[place].cpu() for name, value in result.gradients.items()}
                losses[row] = float(result.losses[place])
    names = [item.name for item in lora.parameters]
    return _Passed(
        {name: torch.stack([rows[row][name] for row in sorted(rows)]) for name in names}, losses, factors
    )


def _flat(passed: _Passed) -> torch.Tensor:
    return torch.cat([value.flatten(1) for value in passed.gradients.values()], dim=1)


def _model_passes(device: torch.device) -> Iterator[Line]:
    here, there, again, seconds = _both(device, _passed)
    change = (_flat(there) - _flat(here)).norm(dim=1) / _flat(here).norm(dim=1)
    yield Line("gradients of a document", float(change.max()), 1e-4, seconds)
    yield Line("losses", _relative(there.losses, here.losses), 1e-5, seconds)
    pairs = [(there.factors.outputs[name], value) for name, value in here.factors.outputs.items()]
    pairs += [(there.factors.inputs[name], value) for name, value in here.factors.inputs.items()]
    sums = [_relative(found.matrix(), value.matrix()) for found, value in pairs]
    yield Line("factor sums", max(sums), 1e-4, seconds)
    yield Line("gradients, twice", float((_flat(again) - _flat(there)).abs().max()), 0.0, seconds)


# ------------------------------------------------------------------ whitening


def _curvature(passed: _Passed, device: torch.device) -> list[ModuleCurvature]:
    """From the CPU's factor sums, lambda measured on the device."""
    return [
        choose_components(
            rotation,
            measured_lambda(squared_sum(rotation, passed.gradients[rotation.name].to(device)), DOCUMENTS),
            preconditioner="ekfac-full",
            components=1,
            damping=CONFIG.damping,
        )
        for rotation in rotations(passed.factors)
    ]


def _whitening(device: torch.device) -> Iterator[Line]:
    passed = _passed(CPU)
    lambdas, lambdas_there, _, seconds = _both(device, lambda where: _curvature(passed, where))
    worst = max(_relative(b.lambdas, a.lambdas) for a, b in zip(lambdas, lambdas_there, strict=True))
    yield Line("lambda", worst, 1e-4, seconds)

    def gram(where: torch.device) -> torch.Tensor:
        return accumulate_gram(lambdas, lambda _, name: passed.gradients[name].to(where), [DOCUMENTS])

    here, there, again, seconds = _both(device, gram)
    yield Line("inner products", _relative(there, here), 1e-4, seconds)
    yield Line("inner products, twice", float((again - there).abs().max()), 0.0, seconds)

    def sketch(where: torch.device) -> torch.Tensor:
        def load(name: str) -> torch.Tensor:
            return passed.gradients[name].to(where)

        return sketch_rows(lambdas, load, DOCUMENTS, columns=1024, seed=0)[0]

    here, there, again, seconds = _both(device, sketch)
    yield Line("sketch", _relative(there, here), 1e-4, seconds)
    yield Line("sketch, twice", float((again - there).abs().max()), 0.0, seconds)

    def along(where: torch.device) -> torch.Tensor:
        # Products, not coordinates: directions may be turned among themselves, or change their signs.
        rows = unit_rows(here.to(where)).rows
        weights = sharpened_directions(rows @ (rows.T @ sketched_directions(rows, 8, 0)))
        found = coordinates(weights, rows @ (rows.T @ weights))
        return found @ found.T

    here_along, there, again, seconds = _both(device, along)
    yield Line("along directions", _relative(there, here_along), 1e-4, seconds)
    yield Line("along directions, twice", float((again - there).abs().max()), 0.0, seconds)


# ----------------------------------------------------------------------- fits


def _clusters(documents: int, noise: float) -> GramSpan:
    """Inner products of documents about eight directions; the noise has `noise` times their length."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 1000, generator=generator)
    rows = centres[torch.arange(documents) % 8] + noise * torch.randn(documents, 1000, generator=generator)
    return unit_gram(rows @ rows.T)


def _fits(device: torch.device, documents: int) -> Iterator[Line]:
    span = _clusters(documents, 0.05)

    def learned(where: torch.device) -> Fit:
        return fit(span.to(where), 8, CONFIG, 0)

    here, there, again, seconds = _both(device, learned)
    yield Line("objective of a fit", abs(there.objective - here.objective), 1e-4, seconds)
    cosines = span.inner(here.atoms, there.atoms.cpu())
    yield Line("atoms, 1 - cosine", float(1 - cosines.max(1).values.min()), 1e-3, seconds)
    yield Line("codes, twice", float((again.codes - there.codes).abs().max()), 0.0, seconds)


# ------------------------------------------------------------------- evidence


def _evidence(device: torch.device, documents: int) -> Iterator[Line]:
    span = _clusters(documents, 2.0)
    strengths = find(span, CONFIG, 0).atoms

    def surrogate(where: torch.device) -> Span:
        return turned(span.to(where), 0, "surrogate")

    here, there, _, seconds = _both(device, surrogate)
    every = torch.arange(documents)
    yield Line("surrogate documents", _relative(there.cosines(every), here.cosines(every)), 1e-4, seconds)

    def parted(where: torch.device) -> np.ndarray:
        return separation(pulls(span.to(where), strengths))

    one, other, _, seconds = _both(device, parted)
    yield Line("separation, nats", float(np.abs(other - one).max()), 0.05, seconds)

    def tight(where: torch.device) -> np.ndarray:
        return tightness(pulls(span.to(where), strengths), strengths)

    left, right, _, seconds = _both(device, tight)
    yield Line("tightness", float(np.abs(right - left).max()), 1e-5, seconds)

    def passing(where: torch.device) -> int:
        """Atoms with a p-value under 1% of the whole procedure."""
        moved = span.to(where)
        own = find(moved, CONFIG, 0).atoms
        null: list[np.ndarray] = []
        for number in range(3):
            other = turned(moved, 0, str(number))
            null.append(separation(pulls(other, find(other, CONFIG, 0).atoms)))
        found = p_values(separation(pulls(moved, own)), np.concatenate(null))
        return sum(value is not None and value < 0.01 for value in found)

    count, count_there, again, seconds = _both(device, passing)
    # Fits of noisy documents may end in other optima, and an atom at the line fall to its other side.
    yield Line("atoms that pass", abs(count_there - count), max(1.0, 0.2 * count), seconds)
    yield Line("atoms that pass, twice", abs(again - count_there), 0.0, seconds)


def report(device: torch.device, fitted_documents: int) -> bool:
    """Print the table; whether every line passes."""
    kind = f"{device.type} s"
    print(f"{'comparison':26} {'difference':>11} {'tolerance':>10} {'CPU s':>8} {kind:>8}", flush=True)
    passes = True
    for line in compare(device, fitted_documents):
        here, there = line.seconds
        figures = f"{line.difference:11.2e} {line.tolerance:10.0e} {here:8.3f} {there:8.3f}"
        print(f"{line.name:26} {figures}{'' if line.passes else '  beyond'}", flush=True)
        passes = passes and line.passes
    return passes


def main() -> int:
    parser = ArgumentParser(description="Compare results of the CPU and of CUDA.", epilog=__doc__)
    parser.add_argument("--documents", type=int, default=1600, help="documents of the sets that are fitted")
    args = parser.parse_args()
    if args.documents < 100:
        parser.error("--documents: at least 100, or there is nothing to find")
    if not torch.cuda.is_available():
        print("this machine has no CUDA device: nothing was compared", file=sys.stderr)
        return NO_CUDA
    device = torch.device("cuda", 0)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    passes = report(device, args.documents)
    print("all within tolerance" if passes else "results differ by more than they may")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
