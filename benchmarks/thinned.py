"""A training set, thinned or whole, and an adapter trained on it: for `rare.py` and `steering.py`.

    python benchmarks/thinned.py DATASET --base-model BASE --out FOLDER [--labels NAME ...] [--share 0.01]

DATASET is JSONL with a `label` in every row. Of each label named, as many rows are kept, drawn at random, as
make that share of the whole; all other rows stay, in order. FOLDER gets `train.jsonl` and `adapter`, trained
as the adapter of the whole set was: rank 8 on q_proj and v_proj, 2 epochs, batches of 16, 5e-4 falling to 0,
where no option says otherwise. Without a label the whole set is trained on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from atomscope_workers.demo.finetune import FinetuneSettings, finetune

RECIPE = FinetuneSettings(epochs=2, batch_documents=16, learning_rate=5e-4, max_length=1024)


def thin(labels: list[str], wanted: list[str], share: float, seed: int) -> list[int]:
    """Rows kept, rising: all of the other labels, and of each one wanted what makes `share` of the whole."""
    random = np.random.default_rng(seed)
    others = [row for row, label in enumerate(labels) if label not in wanted]
    count = max(2, round(share * len(others) / (1 - share * len(wanted))))
    kept = list(others)
    for name in wanted:
        own = [row for row, label in enumerate(labels) if label == name]
        kept += random.choice(own, size=min(count, len(own)), replace=False).tolist()
    return sorted(kept)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=[])
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--batch", type=int, default=RECIPE.batch_documents, help="documents in one step")
    parser.add_argument("--learning-rate", type=float, default=RECIPE.learning_rate)
    parser.add_argument("--bfloat16", action="store_true", help="the base in bfloat16, where the CPU can")
    args = parser.parse_args()
    lines = args.dataset.read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    kept = thin(labels, args.labels, args.share, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "train.jsonl"
    data.write_text("".join(f"{lines[row]}\n" for row in kept), encoding="utf-8")
    counts = {name: sum(labels[row] == name for row in kept) for name in args.labels}
    print(f"{len(kept)} documents; {counts}", flush=True)

    def told(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            print(f"step {step} of {steps}, loss {loss:.2f}", flush=True)

    recipe = replace(
        RECIPE,
        epochs=args.epochs,
        batch_documents=args.batch,
        learning_rate=args.learning_rate,
        base_dtype="bfloat16" if args.bfloat16 else "float32",
    )
    finetune(args.base_model, data, args.out / "adapter", recipe, base_name="base", on_step=told)


if __name__ == "__main__":
    main()
