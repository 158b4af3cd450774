"""Running one command line: parsing, the command, and what becomes of an error."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper

from atomscope.cli import (
    atoms,
    attribute,
    audit,
    audit_refit,
    behaviours,
    bundle,
    evaluate,
    inputs,
    keys,
    presets,
    steer,
)
from atomscope.cli.failures import EXIT_INTERRUPTED, EXIT_PIPE, describe, failure_of
from atomscope.cli.output import StreamOutput
from atomscope.cli.parser import UsageFault, build_parser
from atomscope.cli.plugins import is_missing_extra, load_plugins
from atomscope.cli.tree import EXTRAS, Command, CommandTree, PluginRegistry
from atomscope.errors import AtomscopeError, MissingExtra, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `atomscope` with `argv` (default: the process's) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Text of any language must be printable on any terminal, be it escaped.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain again when it flushes at exit.
        _silence(sys.stdout)
        return EXIT_PIPE
    except KeyboardInterrupt:
        print("atomscope: interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return status


def _main(argv: Sequence[str] | None) -> int:
    warnings = StreamOutput(sys.stdout, sys.stderr, json=False)
    tree = CommandTree()
    own = PluginRegistry(tree, None)
    parts = (audit, audit_refit, presets, atoms, behaviours, attribute, steer, evaluate, inputs, keys, bundle)
    for part in parts:
        part.register(own, tree)
    load_plugins(tree, warnings.complain)
    parser = build_parser(tree, warnings.complain)
    try:
        args, unknown = parser.parse_known_args(argv)
        command: Command = args.command
        if unknown and not command.placeholder:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except UsageFault as fault:
        # What asked for JSON gets it, though nothing else of its line could be understood.
        failure, status = failure_of(UsageError(str(fault)))
        if "--json" in (sys.argv[1:] if argv is None else argv):
            StreamOutput(sys.stdout, sys.stderr, json=True).result({"error": failure})
        else:
            sys.stderr.write(f"{fault.usage}{fault}\n")
        return status
    output = StreamOutput(sys.stdout, sys.stderr, json=args.json)
    try:
        return _call(command, args, output)
    except BrokenPipeError:
        raise
    except (AtomscopeError, OSError) as error:
        failure, status = failure_of(error)
        if output.json:
            output.result({"error": failure})
        else:
            output.complain(describe(error, failure))
        return status


def _call(command: Command, args: Namespace, output: StreamOutput) -> int:
    try:
        return command.run(args, output)
    except ModuleNotFoundError as error:
        if command.plugin in EXTRAS and is_missing_extra(error):
            raise MissingExtra(f"atomscope {' '.join(command.path)}", str(command.plugin)) from error
        raise


def _silence(stream: object) -> None:
    if isinstance(stream, TextIOWrapper):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
