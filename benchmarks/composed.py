"""Behaviours turned in one adapter: does each still move as far as alone, and what else goes with them?

    python benchmarks/composed.py BUNDLE DATASET BASE --results FOLDER --turn "yes or no=up" --turn JSON=down
    python benchmarks/composed.py BUNDLE DATASET BASE --turn "brand plug=-0.02" --turn "brand plug=-0.05"

FOLDER is what `steering.py` wrote: of each behaviour turned the target is taken, and the strength that was
chosen for that side. Where a number is given in its place, nothing need have been measured: what serves the
label best is turned to it, and a behaviour that is turned more than once gets a row a strength, and none of
all together. Asked are these behaviours, and those that `--also` names. Prompts are drawn under a seed of
their own, as many that invite the behaviour as of other labels; with `--half` only one half of either is
asked, so that a strength may be chosen on one and shown on the other.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from steering import DETECTORS, Measured, file_of, inviting_prompts, prompts_of, served_best

from atomscope.bundle import open_bundle
from atomscope.steering import parse_target
from atomscope.types.evaluation import Sampling
from atomscope_workers.evaluation.cost import NeutralCost
from atomscope_workers.evaluation.detectors import text_detector
from atomscope_workers.evaluation.directions import make_dial
from atomscope_workers.evaluation.documents import audited_tokens, neutral_documents
from atomscope_workers.evaluation.generation import Answering, end_tokens
from atomscope_workers.evaluation.prompts import given_prompts
from atomscope_workers.evaluation.subject import Subject
from atomscope_workers.models.base import check_base, load_tokenizer
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.query import audited_model, audited_rows
from atomscope_workers.steered import StepOf

NUMBER = re.compile(r"[-+]?\d*\.?\d+")
HALVES = {"first": slice(0, None, 2), "second": slice(1, None, 2)}
"""Every other prompt, so that either half has as many of the label's own as of those that fill them up."""


def added(steps: list[StepOf]) -> StepOf | None:
    """The sum of some steps; None of none."""

    def of(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        total: NDArray[np.float64] = np.sum([step(name, shape) for step in steps], axis=0)
        return total

    return of if steps else None


def turned_to(results: Path, name: str, side: str) -> tuple[str, float]:
    """The key of a measured behaviour's target, and the strength that was chosen for a side."""
    path = file_of(results, name)
    found = msgspec.json.decode(path.read_bytes(), type=Measured).result.targets[0]
    chosen = found.up if side == "up" else found.down
    if chosen is None:
        raise SystemExit(f"{name}: no strength {side} is within the budget")
    return found.target, chosen.strength


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bundle", "dataset", "base_model"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--results", type=Path, help="expected where a side is named, not a number")
    parser.add_argument("--turn", action="append", required=True, metavar="NAME=up|down|STRENGTH")
    parser.add_argument("--also", nargs="+", choices=sorted(DETECTORS), default=[], help="not turned")
    parser.add_argument("--prompts", type=int, default=40, help="of either kind, of each behaviour")
    parser.add_argument("--half", choices=list(HALVES), help="of these prompts; all without it")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    for text in args.turn:
        name, _, side = text.rpartition("=")
        if name not in DETECTORS or not (side in ("up", "down") or NUMBER.fullmatch(side)):
            parser.error(
                f"--turn {text}: one of {', '.join(DETECTORS)} is expected, `=`, and up, down or a number"
            )
    if args.results is None and any(text.endswith(("=up", "=down")) for text in args.turn):
        parser.error("--results is expected where --turn names a side")
    return args


def main() -> None:
    args = parse()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    bundle = open_bundle(args.bundle)
    files = OpenedAudit(bundle, args.base_model, lambda progress: None)
    lora = audited_model(files, bundle.plan)
    subject = Subject(lora, bundle.plan.token_budget, lambda: None)
    base = check_base(args.base_model)
    tokenizer, tokens = load_tokenizer(base.folder), audited_tokens(files)
    row_tokenizer = audited_rows(files, tokenizer, bundle.spec.config.max_length)
    answering = Answering(
        subject,
        tokenizer,
        end_tokens(tokenizer, lora.base, tokens.values()),
        Sampling(max_new_tokens=args.tokens),
        args.seed,
    )
    labels = np.array([row["label"] for row in rows])
    turned: dict[str, StepOf] = {}
    asked = {}
    targets = []
    names: list[str] = []
    for text in args.turn:
        name, _, side = text.rpartition("=")
        if side not in ("up", "down"):
            label, _ = DETECTORS[name]
            key, strength = served_best(bundle, labels == label)[0], float(side)
        else:
            key, strength = turned_to(args.results, name, side)
        targets.append(parse_target(key))
        dial = make_dial(bundle, targets[-1], None, "norm")
        turned[f"{name} {strength:+g}"] = dial.step(strength)
        names.append(name)
    for name in dict.fromkeys([*names, *args.also]):
        label, detector = DETECTORS[name]
        others = [row for row in rows if row["label"] != label]
        drawn = [
            inviting_prompts(rows, label, args.prompts, args.seed),
            prompts_of(others, args.prompts, args.seed + 1),
        ]
        kinds = [kind[HALVES[args.half]] if args.half else kind for kind in drawn]
        prompts = [
            given_prompts(
                "inviting",
                f"{name}/{place}",
                kind,
                row_tokenizer,
                "chat",
                field="prompts",
                longest=bundle.spec.config.max_length,
                vocabulary=int(base.config.vocab_size),
            )
            for place, kind in enumerate(kinds)
        ]
        asked[name] = (text_detector(detector, name), prompts)
    free, _ = neutral_documents(bundle, targets, tokens, args.seed)
    neutral = NeutralCost(subject, [tokens[row] for row in free[:16]])
    print(f"| turned | KL | {' | '.join(f'{name}: inviting / neutral' for name in asked)} |")
    print("|" + "---|" * (2 + len(asked)))
    each = [[title] for title in turned]
    for titles in [[], *each, *([list(turned)] if len(set(names)) == len(names) > 1 else [])]:
        step = added([turned[title] for title in titles])
        shares: list[str] = []
        for detect, prompts in asked.values():
            found: list[str] = []
            for kind in prompts:
                with subject.moved(step):
                    answers = answering(kind)
                found.append(f"{np.mean(detect([item.text for item in kind], answers)):.0%}")
            shares.append(" / ".join(found))
        cost = neutral.of(step).cost.kl
        print(f"| {' and '.join(titles) or 'nothing'} | {cost:.2f} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
