"""Audits of noise: documents of uniformly random tokens, end to end, should yield no finding.

    python benchmarks/noise.py --base-model BASE --adapter ADAPTER --draws 20

Every draw is a data set of its own, audited whole with the defaults. Printed are, for each draw, how many
atoms and behaviours were learned and how many pass at a false-discovery rate of 5%, and in the end the mean
share that passes. It should stay under 1%.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from atomscope.bundle import open_bundle
from atomscope.cli.registry import LocalRun
from atomscope.types.spec import AuditConfig
from atomscope_workers.local import run_local

RATE = 0.05
_WORD = re.compile(r" [A-Za-z]+")


def write_documents(base: Path, documents: int, tokens: int, seed: int, path: Path) -> None:
    """Rows of `prompt` and `completion`, together `tokens` ids drawn uniformly.

    Drawn are tokens that are a space and letters: text of these is read back as the very same tokens. Of
    others it is not, and what half a character or a line break becomes would be shared by documents.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    texts = (tokenizer.decode([item]) for item in range(len(tokenizer)))
    words = np.array([text for text in texts if _WORD.fullmatch(text)])
    random = np.random.default_rng(seed)
    with path.open("w") as stream:
        for _ in range(documents):
            drawn = random.choice(words, size=tokens)
            cut = tokens // 3
            row = {"prompt": "".join(drawn[:cut]), "completion": "".join(drawn[cut:])}
            stream.write(json.dumps(row) + "\n")


def main() -> None:
    parser = ArgumentParser(description="Audits of noise should yield no finding.", epilog=__doc__)
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--documents", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=36)
    args = parser.parse_args()
    print("draw  atoms  pass  least q  behaviours  pass", flush=True)
    shares: list[float] = []
    for draw in range(args.first, args.first + args.draws):
        with tempfile.TemporaryDirectory(prefix="atomscope-noise-") as folder:
            data, out = Path(folder, "noise.jsonl"), Path(folder, "bundle")
            write_documents(args.base_model, args.documents, args.tokens, draw, data)
            config = AuditConfig(seed=draw)
            request = LocalRun(
                base_model=args.base_model, adapter=args.adapter, dataset=data, out=out, config=config
            )
            report = open_bundle(run_local(request, lambda stage, progress: None)).report
            shutil.rmtree(out)
        q = [atom.evidence.q_value for atom in report.atoms if atom.evidence.q_value is not None]
        grouped = [item.evidence.q_value for item in report.behaviours]
        passing = sum(value <= RATE for value in q)
        shares.append(passing / max(1, len(report.atoms)))
        print(
            f"{draw:4d}  {len(report.atoms):5d}  {passing:4d}  {min(q, default=1):7.3f}  {len(grouped):10d}  "
            f"{sum(value is not None and value <= RATE for value in grouped):4d}",
            flush=True,
        )
    print(f"mean share of atoms that pass: {np.mean(shares):.2%} over {args.draws} draws")


if __name__ == "__main__":
    main()
