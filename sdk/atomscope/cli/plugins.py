"""Loading what the extras add, so that a broken one costs its own commands and no others."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from atomscope.cli.registry import Output
from atomscope.cli.tree import EXTRAS, Command, CommandTree, PluginRegistry
from atomscope.errors import MissingExtra

GROUP = "atomscope.commands"

_COMMANDS_OF_EXTRAS = {
    ("up",): ("service", "run the whole stack on this machine"),
    ("models", "register"): ("service", "register a folder of the store's machine as a base model"),
}
"""Known even where the extra that provides them cannot be imported, so that they can say what to install."""


def load_plugins(tree: CommandTree, report: Callable[[str], None]) -> None:
    """Let every entry point of the group register; one that cannot is reported, and the others go on."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        _load(point, tree, report)
    for path, (extra, summary) in _COMMANDS_OF_EXTRAS.items():
        if path not in tree:
            _add_placeholder(tree, path, extra, summary)


def is_missing_extra(error: ModuleNotFoundError) -> bool:
    """Whether the module that was not found is another distribution's, not one of our own mistyped."""
    return (error.name or "").partition(".")[0] not in {"atomscope", "atomscope_workers", "atomscope_service"}


def _load(point: EntryPoint, tree: CommandTree, report: Callable[[str], None]) -> None:
    try:
        point.load()(PluginRegistry(tree, point.name))
    except ModuleNotFoundError as error:
        # An extra that was not asked for is no fault; its commands say what to install when they are used.
        if point.name not in EXTRAS or not is_missing_extra(error):
            report(_told(point, error))
    except Exception as error:  # noqa: BLE001  (a plugin may fail in any way)
        report(_told(point, error))


def _told(point: EntryPoint, error: Exception) -> str:
    return f"atomscope: the commands of {point.name!r} ({point.value}) could not be added: {error!r}"


def _add_placeholder(tree: CommandTree, path: tuple[str, ...], extra: str, summary: str) -> None:
    def configure(parser: ArgumentParser) -> None:
        parser.add_argument("arguments", nargs="*", help=f"needs pip install 'atomscope[{extra}]'")

    def run(args: Namespace, output: Output) -> int:
        raise MissingExtra(f"atomscope {' '.join(path)}", extra)

    tree.add(Command(path, summary, configure, run, extra, placeholder=True))
