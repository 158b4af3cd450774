"""What a whole audit costs beside its extraction, and a refit beside the whole, in one run.

    python benchmarks/whole_audit.py --base-model BASE --adapter ADAPTER [--dataset FILE ...]

`--documents` documents: the rows of the given JSONL files, then those of `second_set.py` under further seeds.
An audit with one fit and no surrogates is run whole, then refitted three times: as it was fitted, with the
evidence (5 fits, 5 surrogates), and with fewer atoms and a larger penalty. Each is a process of its own.
What the evidence adds is the difference of the first two refits; it would add as much to the whole audit,
since documents' losses under the base, which a refit takes from its parent, are measured once in either case.
Printed are the seconds of every stage and of the whole, imports left out, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import second_set

from atomscope.bundle import open_bundle
from atomscope.cli.registry import LocalRefit, LocalRun
from atomscope.types.spec import AuditConfig
from atomscope.types.work import STAGES, Stage
from atomscope_workers.local import refit_local, run_local
from atomscope_workers.stages.context import StageContext, StageFunction, UnitResult
from atomscope_workers.stages.registry import STAGE_FUNCTIONS

ATOMS, REFIT_ATOMS = 500, 300
"""K of the audits, and of the refit."""
MORE_PENALTY = 1.25
"""Penalty of the refit over that which its parent chose."""

Seconds = dict[str, float]


def write_documents(files: list[Path], documents: int, path: Path) -> None:
    """The rows of `files`, filled up by rows of the second set, each under an id of its own."""
    given = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    own = chain.from_iterable(second_set.rows(seed) for seed in count())
    with path.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(islice(chain(given, own), documents)):
            stream.write(json.dumps({"id": f"row-{number:06d}", "messages": row["messages"]}) + "\n")


def clocked(function: StageFunction, stage: Stage, seconds: Seconds) -> StageFunction:
    def run(ctx: StageContext) -> UnitResult:
        start = time.perf_counter()
        try:
            return function(ctx)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    return run


def measured(work: Callable[[], Path]) -> Seconds:
    """Seconds of every stage and, under `whole`, of all."""
    seconds: Seconds = {}
    STAGE_FUNCTIONS.update(
        {stage: clocked(function, stage, seconds) for stage, function in STAGE_FUNCTIONS.items()}
    )
    start = time.perf_counter()
    work()
    return seconds | {"whole": time.perf_counter() - start}


def audit(request: LocalRun) -> Seconds:
    return measured(lambda: run_local(request, lambda stage, progress: None))


def refit(request: LocalRefit) -> Seconds:
    return measured(lambda: refit_local(request, lambda stage, progress: None))


def alone(work: Callable[[Any], Seconds], request: LocalRun | LocalRefit) -> Seconds:
    """`work` in a new process, so that nothing of one audit helps or hinders the next."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, request).result()


def table(columns: dict[str, Seconds]) -> None:
    print(f"\n| seconds | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for stage in (*STAGES, "whole"):
        cells = (f"{found[stage]:,.1f}" if stage in found else "" for found in columns.values())
        print(f"| {stage} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where the bundles lie meanwhile; 2 MB a document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atomscope-whole-", dir=args.folder) as name:
        folder = Path(name)
        data, bundle = folder / "train.jsonl", folder / "bundle"
        write_documents(args.dataset, args.documents, data)

        asked = {"n_atoms": ATOMS, "fits": 1, "surrogates": 0}
        request = LocalRun(
            base_model=args.base_model,
            adapter=args.adapter,
            dataset=data,
            out=bundle,
            config=AuditConfig(**asked),
        )
        whole = alone(audit, request)
        report = open_bundle(bundle).report
        facts = report.details["dictionary"]
        print(f"{report.n_documents} documents, {facts['atoms']} atoms", flush=True)
        columns = {"whole audit, 1 fit": whole}
        for title, changed in (
            ("refit, 1 fit", {}),
            ("refit, 5 fits, 5 surrogates", {"fits": 5, "surrogates": 5}),
            ("refit, other K and alpha", {"n_atoms": REFIT_ATOMS, "alpha": MORE_PENALTY * facts["alpha"]}),
        ):
            again = LocalRefit(source=str(bundle), out=folder / "refit", settings=asked | changed)
            columns[title] = alone(refit, again)
            shutil.rmtree(folder / "refit")
    table(columns)
    _, same, evidence, other = (found["whole"] for found in columns.values())
    over = [(whole["whole"] + more) / whole["extract"] for more in (0.0, evidence - same)]
    print(f"\nwhole audit over its extraction: {over[0]:.2f} with one fit, {over[1]:.2f} with the evidence")
    print(f"refit with other K and alpha over the whole audit: {other / whole['whole']:.3f}")


if __name__ == "__main__":
    main()
