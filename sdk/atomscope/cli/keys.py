"""`atomscope keys create|list|revoke`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from atomscope.cli.connect import add_connection, connect
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import columns
from atomscope.cli.tree import CommandTree, PluginRegistry


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("keys create", "make a key and print it, this once", _configure_create, _create)
    registry.add_command("keys list", "the keys of the project", add_connection, _list)
    registry.add_command("keys revoke", "make a key useless", _configure_revoke, _revoke)


def _configure_create(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="what to call it")
    add_connection(parser)


def _configure_revoke(parser: ArgumentParser) -> None:
    parser.add_argument("key", metavar="ID", help="key_...")
    add_connection(parser)


def _create(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        key = client.keys.create(args.name)
    output.note(f"{key.id}: this is the only time the key is shown")
    output.result(key, key.key)
    return EXIT_DONE


def _list(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        keys = list(client.keys.list(limit=100))
    header = ("id", "name", "begins", "created", "last used", "revoked")
    rows = [
        (key.id, key.name, key.hint, key.created_at, key.last_used_at or "never", key.revoked_at or "")
        for key in keys
    ]
    output.result(keys, columns(header, rows))
    return EXIT_DONE


def _revoke(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        deleted = client.keys.delete(args.key)
    output.result(deleted, f"{deleted.id} revoked")
    return EXIT_DONE
