"""Cost and memory of a worker by the number of documents, and what a second worker adds, over real S3.

    python benchmarks/scaling.py [--documents 1000 10000 100000] [--pairs 5]

A tiny Llama of random weights, a LoRA and documents of random words. Inputs and outputs lie in SeaweedFS,
started for the occasion, and every unit sees them as a worker's does. The plan is made in one process;
extraction and what follows it, up to products along directions, run in others, whose seconds a document and
peak memory are printed for every size, with the slope of log seconds over log documents. Then an audit of
`--shared` documents, its artifacts in a folder, is extracted by one process of one thread, and by two at
once, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fixtures.models import train_tokenizer
from tests.fixtures.s3 import s3_running

from atomscope.bundle import layout
from atomscope.input_files import file_digest, folder_digest
from atomscope.store import ObjectStore, open_store
from atomscope.types.bundle import Plan
from atomscope.types.spec import AuditConfig, AuditSpec, InputRef
from atomscope.types.work import FAN_OUT, Stage, UnitOrder, unit_count
from atomscope_workers.celery_context import StoreContext
from atomscope_workers.stages.context import UnitResult
from atomscope_workers.stages.registry import STAGE_FUNCTIONS

CONFIG = AuditConfig(exact_documents=100, sketch_columns=512, directions=8, dtype="float32")
"""Directions are found at every size; so few that several units share the parameters."""
AFTER_EXTRACTION: tuple[Stage, ...] = (
    "eigenbases", "lambdas", "curvature", "project", "directions", "along", "directions_again", "along_again",
)  # fmt: skip
ROUTE: tuple[Stage, ...] = ("extract", "project", "directions", "along", "directions_again", "along_again")
"""Extraction and the sketch route, whose slope is told."""
PROCESSES: tuple[tuple[Stage, ...], ...] = (
    ("extract", "eigenbases", "lambdas", "curvature", "project"), ("directions",), ("along",),
    ("directions_again",), ("along_again",),
)  # fmt: skip
"""What a process runs. Who finds directions holds the sketches, or the products, of all documents."""
PROJECT, TARGETS = "prj_bench", ("q_proj", "v_proj")


def model_folders(folder: Path) -> tuple[Path, Path]:
    """A base model and an adapter, of random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["<|end|>"], eos="<|end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    base, adapter = folder / "base", folder / "adapter"
    model = LlamaForCausalLM(config)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    with_lora = get_peft_model(model, LoraConfig(r=4, target_modules=list(TARGETS), task_type="CAUSAL_LM"))
    for name, value in with_lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, 0, 0.1)
    with_lora.save_pretrained(adapter, save_embedding_layers=False)
    return base, adapter


def dataset(path: Path, documents: int) -> None:
    """Rows of some words each, their lengths drawn from one distribution at every size."""
    random = np.random.default_rng(0)
    words = [f"{first}{last}" for first in "bcdfgklmnprst" for last in ("an", "el", "ip", "or", "us")]
    with path.open("w") as stream:
        for _ in range(documents):
            drawn = random.choice(words, size=int(random.integers(10, 40)))
            cut = len(drawn) // 2
            row = {"prompt": " ".join(drawn[:cut]), "completion": " ".join(drawn[cut:])}
            stream.write(json.dumps(row) + "\n")


def put_folder(store: ObjectStore, name: str, folder: Path) -> InputRef:
    files = [item for item in sorted(folder.iterdir()) if item.is_file()]
    for item in files:
        store.put_file(f"inputs/{name}/{item.name}", item)
    digest = folder_digest({item.name: file_digest(item) for item in files})
    return InputRef(id=name, location=f"inputs/{name}/", sha256=digest, size=0, name=name)


def make_audit(store: ObjectStore, audit: str, documents: int, base: InputRef, adapter: InputRef) -> None:
    """The data set and the spec of an audit, in the store."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.jsonl")
        dataset(path, documents)
        key = f"inputs/{audit}/data.jsonl"
        store.put_file(key, path)
        data = InputRef(
            id="data", location=key, sha256=file_digest(path), size=path.stat().st_size, name=path.name
        )
    spec = AuditSpec(
        audit_id=audit, project_id=PROJECT, base_model=base, adapter=adapter, dataset=data, config=CONFIG
    )
    store.put_bytes(f"{prefix(audit)}spec.json", msgspec.json.encode(spec))


def prefix(audit: str) -> str:
    return layout.attempt_prefix(PROJECT, audit, 1)


def units_key(audit: str) -> str:
    """Where the units that `validate` planned are kept, as control keeps them in its database."""
    return f"{prefix(audit)}units.json"


def run_unit(
    store: ObjectStore, audit: str, stage: Stage, index: int, fence: int, winners: dict[str, list[int]]
) -> UnitResult:
    """One unit, committed as a worker commits it."""
    order = UnitOrder(
        project_id=PROJECT,
        audit_id=audit,
        attempt=1,
        unit_id="unt",
        stage=stage,
        index=index,
        fence=fence,
        work_prefix=prefix(audit),
        spec_key=f"{prefix(audit)}spec.json",
        winners=winners,
        heartbeat_seconds=10.0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        ctx = StoreContext(store, order, Path(scratch), lambda done, total, unit: None, lambda: None)
        try:
            result = STAGE_FUNCTIONS[stage](ctx)
            ctx.commit()
        finally:
            ctx.close()
    return result


def shards_of(store: ObjectStore, audit: str) -> int:
    key = f"{layout.unit_prefix(prefix(audit), 'validate', 0, 1)}{layout.PLAN}"
    return len(msgspec.json.decode(store.get_bytes(key), type=Plan).shards)


def child(store: ObjectStore, audit: str, what: str, fence: int) -> None:
    """`plan`, stages parted by commas, or shares of the extraction such as `0/2`; prints what it took."""
    if what == "plan":
        told = run_unit(store, audit, "validate", 0, 1, {})
        store.put_bytes(units_key(audit), msgspec.json.encode(told.summary["units"]))
        return
    shards = shards_of(store, audit)
    planned = {"validate": [1]}
    counts = msgspec.json.decode(store.get_bytes(units_key(audit)), type=dict[Stage, int])
    seconds: dict[str, float] = {}
    if "/" not in what:
        stages = what.split(",")
        if "extract" in stages:
            first = time.time()
            run_unit(store, audit, "extract", 0, 1, planned)  # loads the model, which is then kept
            start = time.time()
            for index in range(shards):
                run_unit(store, audit, "extract", index, 2, planned)
            seconds["extract"] = time.time() - start
            seconds["loading"] = start - first - seconds["extract"] / shards
        winners = {**planned, "extract": [2] * shards}
        for stage in AFTER_EXTRACTION:
            start, units = time.time(), unit_count(stage, shards, counts)
            if stage in stages:
                for index in range(units):
                    run_unit(store, audit, stage, index, 1, winners)
                seconds[stage] = time.time() - start
            winners[stage] = [1] * units
    else:
        part, parts = (int(item) for item in what.split("/"))
        run_unit(store, audit, "extract", part, fence, planned)
        print("ready", flush=True)
        sys.stdin.readline()
        for index in range(part, shards, parts):
            run_unit(store, audit, "extract", index, fence + 1, planned)
        print("done", flush=True)  # what is timed ends here, not with the interpreter
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "shards": shards}), flush=True)


def start_child(
    uri: str, audit: str, what: str, environment: dict[str, str], fence: int = 1
) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", uri, audit, what, str(fence)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args} failed")
    return json.loads(out.splitlines()[-1]) if out.strip() else {}


def together(uri: str, audit: str, environment: dict[str, str], processes: int, fence: int) -> float:
    """Seconds of the extraction by so many processes of one thread, their models loaded before."""
    single = environment | {"OMP_NUM_THREADS": "1"}
    running = [start_child(uri, audit, f"{part}/{processes}", single, fence) for part in range(processes)]
    for process in running:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise SystemExit("a worker did not start")
    start = time.monotonic()
    for process in running:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in running:
        if process.stdout is None or process.stdout.readline().strip() != "done":
            raise SystemExit("a worker failed")
    took = time.monotonic() - start
    for process in running:
        finished(process)
    return took


def print_sizes(sizes: Sequence[int]) -> None:
    """Cost and memory of a worker at every size, over real S3, and the slope of the first."""
    with s3_running() as server, tempfile.TemporaryDirectory() as folder:
        environment = server.environment | {"ATOMSCOPE_CACHE": str(Path(folder, "cache"))}
        os.environ.update(environment)
        uri = f"s3://{server.new_bucket()}"
        store = open_store(uri)
        base, adapter = model_folders(Path(folder))
        refs = put_folder(store, "base", base), put_folder(store, "adapter", adapter)
        after = " | ".join(AFTER_EXTRACTION)
        print(f"| documents | loading s | ms a document: extract | {after} | peak MiB | of directions |")
        print(f"|---|---|---|{'---|' * len(AFTER_EXTRACTION)}---|---|")
        costs: list[float] = []
        for count in sizes:
            audit = f"aud_{count}"
            make_audit(store, audit, count, *refs)
            finished(start_child(uri, audit, "plan", environment))
            took: dict[str, float] = {}
            peaks = {True: 0.0, False: 0.0}
            for part in PROCESSES:
                found = finished(start_child(uri, audit, ",".join(part), environment))
                took |= found["seconds"]
                shared = not FAN_OUT.isdisjoint(part)
                peaks[shared] = max(peaks[shared], found["peak"])
            costs.append(sum(took[stage] for stage in ROUTE))
            stages = ("extract", *AFTER_EXTRACTION)
            each = " | ".join(f"{1000 * took[stage] / count:.2f}" for stage in stages)
            told = f"{peaks[True]:.0f} | {peaks[False]:.0f}"
            print(f"| {count:,} | {took['loading']:.1f} | {each} | {told} |", flush=True)
        if len(costs) > 1:
            slope = np.polyfit(np.log(sizes), np.log(costs), 1)[0]
            print(f"\nslope of log({' + '.join(ROUTE)}) over log(documents): {slope:.3f}")


def print_shared(documents: int, pairs: int) -> None:
    """How much faster two processes of one thread extract than one, artifacts on disk."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"ATOMSCOPE_CACHE": str(Path(folder, "cache"))}
        uri = str(Path(folder, "store"))
        store = open_store(uri)
        base, adapter = model_folders(Path(folder))
        audit = f"aud_{documents}"
        make_audit(
            store, audit, documents, put_folder(store, "base", base), put_folder(store, "adapter", adapter)
        )
        finished(start_child(uri, audit, "plan", environment))
        if shards_of(store, audit) < 2:
            raise SystemExit(f"{documents} documents make one shard, which two processes cannot share")
        ratios: list[float] = []
        for turn in range(pairs):
            one = together(uri, audit, environment, 1, 10 + 4 * turn)
            two = together(uri, audit, environment, 2, 12 + 4 * turn)
            ratios.append(one / two)
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"two processes of one thread against one: {statistics.median(ratios):.2f} times ({told})")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        uri, audit, what, fence = sys.argv[2:]
        child(open_store(uri), audit, what, int(fence))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--pairs", type=int, default=5, help="of runs by one process and by two")
    parser.add_argument("--shared", type=int, default=8000, help="documents that these extract")
    args = parser.parse_args()
    if args.documents:
        print_sizes(args.documents)
    if args.pairs:
        print_shared(args.shared, args.pairs)


if __name__ == "__main__":
    main()
