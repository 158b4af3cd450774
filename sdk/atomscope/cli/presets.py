"""`atomscope presets`: the settings that an audit can be given by name."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import msgspec

from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.types.presets import PRESETS, Preset


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("presets", "settings of audits by name", _configure, _list)


def _configure(parser: ArgumentParser) -> None:
    """It takes no argument: they are those of this version."""


def _list(args: Namespace, output: Output) -> int:
    found = list(PRESETS.values())
    output.result(found, "\n\n".join(_text(preset) for preset in found))
    return EXIT_DONE


def _text(preset: Preset) -> str:
    """The name and what it is for, then the settings it changes as `--config` takes them (TOML)."""
    lines = [f"  {name} = {msgspec.json.encode(value).decode()}" for name, value in preset.settings.items()]
    return "\n".join([f"{preset.name}: {preset.description}", *(lines or ["  the defaults"])])
