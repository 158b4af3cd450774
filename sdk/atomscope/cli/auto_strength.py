"""`TARGET=auto`: the largest strength whose cost on neutral documents is within the budget."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from atomscope.bundle import Bundle
from atomscope.cli.connect import number
from atomscope.cli.in_process import Load, add_base_model, check_base_model, in_process
from atomscope.cli.registry import Output
from atomscope.client import Audit
from atomscope.client._auto_strength import BUDGETS, Auto, largest_strengths
from atomscope.client._evaluations import make_evaluation
from atomscope.errors import UsageError
from atomscope.types.evaluation import EvaluationResult


def add_budget(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--kl-budget",
        type=number(float, 0),
        help="of a strength of auto: nats per token on neutral documents that it may cost (default 0.5)",
    )
    parser.add_argument(
        "--perplexity-budget",
        type=number(float, 1),
        help="of a strength of auto: how many times the perplexity of neutral documents may be what it was",
    )
    add_base_model(parser)


def parse_strength(text: str) -> float | Auto:
    """A finite number, or how far the budget allows; raises `ValueError`."""
    if text in ("auto", "+auto", "-auto"):
        return "-auto" if text == "-auto" else "auto"
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text!r}")
    return value


def settled(
    target: Audit | Bundle, strengths: Mapping[str, float | Auto], args: Namespace, load: Load, output: Output
) -> tuple[dict[str, float], EvaluationResult | None]:
    """The strengths with numbers in the place of `auto`, each found by itself, by an evaluation without a
    detector; and that evaluation, with the curves, or None where there is no `auto`.

    Raises `SteeringError` where even the least strength that was tried costs too much, and `UsageError`.
    """
    autos: dict[str, Auto] = {
        key: strength for key, strength in strengths.items() if isinstance(strength, str)
    }
    if not autos:
        for option in (*BUDGETS, "base_model", "timeout"):
            if getattr(args, option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} is for a strength of auto")
        return {key: float(strength) for key, strength in strengths.items()}, None
    check_base_model(args, target)
    given = {name: getattr(args, name) for name in BUDGETS if getattr(args, name) is not None}
    query = make_evaluation(list(autos), unit=args.unit, power=args.power, **given)
    if isinstance(target, Bundle):
        with in_process(load, "steer", output) as (runner, on_progress):
            found = runner.evaluate(target, args.base_model, query, on_progress)
    else:
        found = target.ask(query, args.timeout, False if output.json else None)
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    numbers = largest_strengths(autos, found, query)
    for key, found_number in numbers.items():
        output.note(f"{key}={autos[key]} is {found_number:.6g}")
    all_numbers = {
        key: numbers[key] if isinstance(strength, str) else strength for key, strength in strengths.items()
    }
    return all_numbers, found
