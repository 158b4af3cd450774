"""The commands and snippets of the documentation are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

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
from atomscope.cli.parser import UsageParser, build_parser
from atomscope.cli.tree import CommandTree, PluginRegistry

DOCS = Path(__file__).parents[3] / "docs"
COMMANDS = [
    line.strip()
    for page in ("cli.md", "serving.md")
    for block in re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("atomscope ")
]
SNIPPETS = [
    snippet
    for page in ("sdk.md", "serving.md")
    for snippet in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.fixture(scope="module")
def parser() -> UsageParser:
    tree = CommandTree()
    for part in (
        audit,
        audit_refit,
        presets,
        atoms,
        behaviours,
        attribute,
        steer,
        evaluate,
        inputs,
        keys,
        bundle,
    ):
        part.register(PluginRegistry(tree, None), tree)
    return build_parser(tree, pytest.fail)


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_commands_parse(parser: UsageParser, line: str) -> None:
    parser.parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_documented_snippets_compile(snippet: str) -> None:
    compile(snippet, "docs", "exec")


def test_the_documents_hold_both() -> None:
    assert len(COMMANDS) > 15
    assert len(SNIPPETS) > 3
