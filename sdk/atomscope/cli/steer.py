"""`atomscope steer`: a PEFT folder with some behaviours turned up or down."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from atomscope.bundle import Bundle
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.errors import UsageError


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("steer", "write an adapter with atoms turned up or down", _configure, _run)


def _configure(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "strengths",
        nargs="+",
        type=_strength,
        metavar="ATOM=STRENGTH",
        help="in units of the adapter's norm: 7=0.1 gives more of atom 7, 7=-0.1 less",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the steered adapter"
    )
    parser.add_argument("--name", help="its name on the service")


def _run(args: Namespace, output: Output) -> int:
    strengths: dict[int, float] = dict(args.strengths)
    if len(strengths) != len(args.strengths):
        raise UsageError("an atom was given two strengths")
    with opened(args) as target:
        if not isinstance(target, Bundle):
            folder = target.steer(strengths, name=args.name).save(args.out)
        elif args.name is not None:
            raise UsageError("--name is for a steered adapter of the service")
        else:
            folder = target.steer(strengths).save(args.out)
    told = {str(atom): strength for atom, strength in sorted(strengths.items())}
    output.result({"adapter": str(folder), "strengths": told}, str(folder))
    return EXIT_DONE


def _strength(text: str) -> tuple[int, float]:
    atom, equals, strength = text.partition("=")
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not equals or not (atom.isascii() and atom.isdigit()) or not math.isfinite(value):
        raise ArgumentTypeError(f"not ATOM=STRENGTH, such as 7=-0.1: {text!r}")
    return int(atom), value
