"""Time of `bergson build` over documents given as tokens: model passes, gradients and their file.

    python benchmarks/peers/bergson_build.py MODEL DOCUMENTS TOKEN_BUDGET DTYPE THREADS OUT

Runs in an environment of its own (`install.sh`). MODEL is a PEFT folder that names its base's folder;
DOCUMENTS is JSONL of `input_ids` and `labels`; DTYPE is float32 or bfloat16. It takes the steps of
`bergson.build.build_worker`; loading is left out of the time. Prints one JSON object: seconds, documents,
modules.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from bergson.collection import collect_gradients
from bergson.config.config import IndexConfig, PreprocessConfig
from bergson.data import allocate_batches, load_gradients
from bergson.utils.worker_utils import create_processor, setup_model_and_peft
from datasets import Dataset

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def main() -> None:
    model_folder, documents, budget, dtype, threads, out = sys.argv[1:]
    torch.set_num_threads(int(threads))
    rows = [json.loads(line) for line in Path(documents).read_text().splitlines()]
    data = Dataset.from_list([row | {"length": len(row["input_ids"])} for row in rows])
    config = IndexConfig(
        run_path=out,
        model=model_folder,
        precision=PRECISIONS[dtype],
        token_batch_size=int(budget),
        projection_dim=0,
    )
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    model, modules = setup_model_and_peft(config)
    processor = create_processor(model, config, modules)
    batches = allocate_batches(data["length"][:], config.token_batch_size)
    start = time.perf_counter()
    collect_gradients(
        model=model,
        data=data,
        processor=processor,
        cfg=config,
        target_modules=modules,
        attention_cfgs={},
        preprocess_cfg=PreprocessConfig(),
        batches=batches,
    )
    seconds = time.perf_counter() - start
    stored = load_gradients(config.partial_run_path)
    print(json.dumps({"seconds": seconds, "documents": len(stored), "modules": len(modules or ())}))


if __name__ == "__main__":
    main()
