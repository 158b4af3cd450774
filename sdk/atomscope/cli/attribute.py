"""`atomscope attribute`: from a prompt and its completion to atoms, behaviours and documents."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from atomscope.bundle import Bundle
from atomscope.cli.connect import number
from atomscope.cli.in_process import add_base_model, check_base_model, in_process
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import card
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.client._attributions import make_query
from atomscope.errors import UsageError
from atomscope.text import counted, visible
from atomscope.types.attribution import AttributionResult

_ATOMS = 8
_BEHAVIOURS = 5
_NOT_ASKED = ("tools", "functions", "system")
"""Fields of a row that change what its turns render to, and that a query does not have."""


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command(
        "attribute",
        "trace a prompt and its completion to what the audit found",
        _configure,
        partial(_run, tree=tree),
    )


def _configure(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--prompt", metavar="TEXT|@FILE", help="the prompt; @FILE reads it from a file")
    parser.add_argument("--completion", metavar="TEXT|@FILE", help="what the model answered")
    parser.add_argument(
        "--messages", metavar="FILE", type=Path, help="a conversation instead: a JSON list of turns"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="rank every document by the cosine of whitened gradients, which reads all of them",
    )
    parser.add_argument("--documents", type=number(int, 0), default=10, help="documents to list (default 10)")
    add_base_model(parser)


def _run(args: Namespace, output: Output, *, tree: CommandTree) -> int:
    query = make_query(
        _text(args.prompt, "--prompt"),
        _text(args.completion, "--completion"),
        _messages(args.messages),
        exact=args.exact,
        documents=args.documents,
    )
    with opened(args) as target:
        check_base_model(args, target)
        if isinstance(target, Bundle):
            with in_process(tree.load_runner, "attribute", output) as (runner, on_progress):
                found = runner.attribute(target, args.base_model, query, on_progress)
        else:
            found = target.ask(query, args.timeout)
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    output.result(found, _shown(found))
    return EXIT_DONE


def _text(given: str | None, option: str) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_bytes().decode("utf-8-sig")  # line ends as they are in the file
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{option}: {given[1:]} cannot be read as UTF-8: {error}") from error


def _messages(path: Path | None) -> list[dict[str, Any]] | None:
    if path is None:
        return None
    try:
        found: object = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--messages: {path} cannot be read as JSON: {error}") from error
    if isinstance(found, dict):
        for field in _NOT_ASKED:
            if found.get(field):
                raise UsageError(f"--messages: {path}: `{field}` is not part of a query; only turns are")
        found = found.get("messages")
    if not isinstance(found, list):
        raise UsageError(
            f"--messages: {path} holds no list of turns: a JSON list of them, or an object with one under "
            "`messages`, is expected"
        )
    return found


def _shown(found: AttributionResult) -> str:
    tokens = max(1, found.n_target_tokens)
    head = card(
        [
            ("completion", counted(found.n_target_tokens, "token")),
            (
                "loss",
                f"{found.loss / tokens:.3f} nats a token, {found.base_loss / tokens:.3f} under the base",
            ),
            ("explained", f"{found.explained:.1%} of its direction by atoms"),
        ]
    )
    parts = [head]
    if not found.atoms:
        parts.append("no atom pulls it: what it does is not in this data")
    for title, lines in (
        (
            "behaviours",
            [_line(i.strength, i.behaviour, i.label, i.keywords) for i in found.behaviours[:_BEHAVIOURS]],
        ),
        ("atoms", [_line(i.value, i.atom, i.label, i.keywords) for i in found.atoms[:_ATOMS]]),
        (
            f"documents, by cosine of {'whitened gradients' if found.exact else 'codes'}",
            [_line(i.value, i.document, i.preview, []) for i in found.documents],
        ),
    ):
        if lines:
            parts.append(title + "\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _line(value: float, index: int, label: str | None, keywords: list[str]) -> str:
    title = label if label is not None else ", ".join(keywords)
    return f"{value:7.3f}  {index:6d}  {visible(title)}"
