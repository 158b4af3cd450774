"""`atomscope steer`: an adapter with some behaviours turned up or down, in the format that a server takes."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from functools import partial

from atomscope.bundle import Bundle
from atomscope.cli.auto_strength import add_budget, parse_strength, settled
from atomscope.cli.connect import out_folder
from atomscope.cli.output import json_text
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.client._auto_strength import Auto
from atomscope.errors import SteeringError, UsageError
from atomscope.steering import Target, parse_target
from atomscope.steering.output import keep_evaluation
from atomscope.types.steering import FORMATS, UNITS


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command(
        "steer", "write an adapter with behaviours turned up or down", _configure, partial(_run, tree=tree)
    )


def _configure(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "strengths",
        nargs="+",
        type=_strength,
        metavar="TARGET=STRENGTH",
        help="an atom (7) or a behaviour (behaviour:3), in units of the adapter's norm: 7=0.1 gives more of "
        "atom 7, 7=-0.1 less; 7=auto and 7=-auto: as much as costs no more than --kl-budget",
    )
    parser.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="folder that is written")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="adapter",
        help="adapter: a PEFT folder of the same rank (default); delta: a PEFT adapter beside it, linear in "
        "its strength; vector: what is added to the weights; gguf, gguf-delta: the first two for llama.cpp",
    )
    parser.add_argument(
        "--unit",
        choices=UNITS,
        default="norm",
        help="what strengths are in: norms of the adapter (default), or, alpha, vectors as they are stored",
    )
    parser.add_argument(
        "--power",
        choices=("+1/2", "0", "-1/2"),
        help="power of the curvature in the unprojection (--power=-1/2); by default the audit's",
    )
    parser.add_argument("--name", help="its name on the service")
    add_budget(parser)


def _run(args: Namespace, output: Output, *, tree: CommandTree) -> int:
    asked: dict[str, float | Auto] = {target.key: strength for target, strength in args.strengths}
    if len(asked) != len(args.strengths):
        raise UsageError("an atom or a behaviour was given two strengths")
    how = {"format": args.format, "unit": args.unit, "power": args.power}
    with opened(args) as target:
        if isinstance(target, Bundle) and args.name is not None:
            raise UsageError("--name is for a steered adapter of the service")
        strengths, evaluated = settled(target, asked, args, tree.load_runner, output)
        if isinstance(target, Bundle):
            folder = target.steer(strengths, **how).save(args.out)
        else:
            folder = target.steer(strengths, name=args.name, **how).save(args.out)
    if evaluated is not None:
        keep_evaluation(folder, json_text(evaluated, ascii_only=True).encode() + b"\n")
    output.result({"adapter": str(folder), "strengths": strengths, **how}, str(folder))
    return EXIT_DONE


def _strength(text: str) -> tuple[Target, float | Auto]:
    name, _, strength = text.partition("=")
    try:
        target = parse_target(name)
    except SteeringError as error:
        raise ArgumentTypeError(str(error)) from error
    try:
        return target, parse_strength(strength)
    except ValueError as error:
        told = f"not TARGET=STRENGTH, such as 7=-0.1, behaviour:3=0.1 or 7=auto: {text!r}"
        raise ArgumentTypeError(told) from error
