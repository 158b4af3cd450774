"""From the tree of commands to an argument parser whose usage errors are exceptions."""

from __future__ import annotations

import re
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

from atomscope.cli.tree import GROUPS, Command, CommandTree

_STATUSES = (
    "exit status: 0 done; 1 an unexpected error; 2 the audit failed or its input was refused; "
    "3 nothing to audit; 4 usage; 130 interrupted"
)


_NUMBER = re.compile(r"-\.?\d")
"""How an argument begins that is no option."""


class UsageFault(Exception):  # noqa: N818
    """A command line that cannot be parsed."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(message)
        self.usage = usage
        """How the command is called, with its line break."""


class UsageParser(ArgumentParser):
    """Raises `UsageFault` where argparse would exit with 2; takes no abbreviations."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        options["allow_abbrev"] = False
        super().__init__(**options)
        # Argparse takes `-1` for a value, since no option is called so, yet `-1=0.1` for an option: what is
        # wrong with it would be that it is missing.
        vars(self)["_negative_number_matcher"] = _NUMBER

    def error(self, message: str) -> NoReturn:
        raise UsageFault(self.format_usage(), f"{self.prog}: {message}")


def build_parser(tree: CommandTree, report: Callable[[str], None]) -> UsageParser:
    """A parser that sets `command` to the `Command` chosen; one that cannot be configured is reported."""
    root = UsageParser(
        prog="atomscope", description="Audit what a fine-tune taught a model.", epilog=_STATUSES
    )
    root.add_argument("--version", action="version", version=f"atomscope {version('atomscope')}")
    groups: dict[tuple[str, ...], Any] = {(): root.add_subparsers(metavar="COMMAND", required=True)}
    for command in sorted(tree, key=lambda command: command.path):
        for depth in range(1, len(command.path)):
            _make_group(groups, command.path[:depth])
        _add(groups[command.path[:-1]], command, report)
    return root


def _make_group(groups: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> None:
    if path in groups:
        return
    group = groups[path[:-1]].add_parser(path[-1], help=GROUPS.get(" ".join(path)))
    groups[path] = group.add_subparsers(metavar="COMMAND", required=True)


def _add(group: Any, command: Command, report: Callable[[str], None]) -> None:  # noqa: ANN401
    parser: ArgumentParser = group.add_parser(
        command.path[-1], help=command.summary, description=command.summary, epilog=_STATUSES
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(command=command)
    if command.plugin is None:
        command.configure(parser)
        return
    try:
        command.configure(parser)
    except (ArgumentError, TypeError, ValueError, ImportError) as error:
        report(
            f"atomscope: the arguments of {' '.join(command.path)!r} ({command.plugin}) are broken: {error}"
        )
