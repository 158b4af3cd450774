"""The commands that exist: a tree of groups, filled by this package and by the extras."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator

import msgspec

from atomscope.cli.registry import LocalRunner, Run

EXTRAS = ("workers", "service")
"""Extras of this distribution; the entry point of each bears its name."""

GROUPS = {
    "audit": "start audits and follow them",
    "atoms": "the atoms of an audit or a bundle",
    "behaviours": "the behaviours of an audit or a bundle",
    "keys": "API keys of the project",
    "bundle": "audit bundles on disk or S3",
    "models": "base models",
    "adapters": "LoRA adapters",
    "datasets": "data sets",
}


class Command(msgspec.Struct, frozen=True):
    path: tuple[str, ...]
    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Run
    plugin: str | None
    """The entry point that added it; None for this package's own."""
    placeholder: bool = False
    """Whether it only says which extra to install, whatever its arguments."""


class CommandTree:
    """Every command by its path."""

    def __init__(self) -> None:
        self._commands: dict[tuple[str, ...], Command] = {}
        self.load_runner: Callable[[], LocalRunner] | None = None

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())

    def __contains__(self, path: tuple[str, ...]) -> bool:
        return path in self._commands

    def add(self, command: Command) -> None:
        """Add a command; raises `ValueError` when its name is taken, by a command or a group."""
        path = command.path
        if not path or not all(word and not word.startswith("-") for word in path):
            raise ValueError(f"not the name of a command: {' '.join(path)!r}")
        for other in self._commands:
            shared = min(len(path), len(other))
            if path[:shared] == other[:shared]:
                raise ValueError(f"the command {' '.join(path)!r} clashes with {' '.join(other)!r}")
        self._commands[path] = command


class PluginRegistry:
    """What one plugin is handed (see `registry.Registry`)."""

    def __init__(self, tree: CommandTree, plugin: str | None) -> None:
        self._tree = tree
        self._plugin = plugin

    def add_command(
        self, path: str, summary: str, configure: Callable[[ArgumentParser], None], run: Run
    ) -> None:
        self._tree.add(Command(tuple(path.split()), summary, configure, run, self._plugin))

    def add_local_runner(self, load: Callable[[], LocalRunner]) -> None:
        if self._tree.load_runner is not None:
            raise ValueError("another plugin already runs audits in process")
        self._tree.load_runner = load
