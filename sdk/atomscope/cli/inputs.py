"""`atomscope models|adapters|datasets list`: what the project can audit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from atomscope.cli.connect import add_connection, connect, number
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import columns, size_text
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.client import Client
from atomscope.types.inputs import Adapter, Dataset, Model

_PAGE = 100


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    add = registry.add_command
    add("models list", "base models, newest first", _configure, partial(_list, of=_models))
    add("adapters list", "adapters, newest first", _configure, partial(_list, of=_adapters))
    add("datasets list", "data sets, newest first", _configure, partial(_list, of=_datasets))


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("--limit", type=number(int, 1), default=20, help="how many to print (default 20)")
    add_connection(parser)


_Listed = tuple[Sequence[Any], Sequence[str], Sequence[Sequence[str]]]
"""The resources, the header of their table, and its rows."""


def _list(args: Namespace, output: Output, *, of: Callable[[Client, int], _Listed]) -> int:
    with connect(args) as client:
        found, header, rows = of(client, args.limit)
    output.result(found, columns(header, rows))
    return EXIT_DONE


def _models(client: Client, limit: int) -> _Listed:
    found: list[Model] = list(islice(client.models.list(limit=min(limit, _PAGE)), limit))
    header = ("id", "status", "architecture", "size", "created", "name")
    return found, header, [
        (item.id, item.status, item.architecture or "", size_text(item.size), item.created_at, item.name)
        for item in found
    ]  # fmt: skip


def _adapters(client: Client, limit: int) -> _Listed:
    found: list[Adapter] = list(islice(client.adapters.list(limit=min(limit, _PAGE)), limit))
    header = ("id", "rank", "base model", "size", "created", "name")
    return found, header, [
        (
            item.id, str(item.rank), item.base_model_name or "", size_text(item.size), item.created_at,
            item.name,
        )
        for item in found
    ]  # fmt: skip


def _datasets(client: Client, limit: int) -> _Listed:
    found: list[Dataset] = list(islice(client.datasets.list(limit=min(limit, _PAGE)), limit))
    header = ("id", "format", "size", "created", "name")
    return found, header, [
        (item.id, item.format, size_text(item.size), item.created_at, item.name) for item in found
    ]  # fmt: skip
