"""`atomscope audit ...`: audits of the service, and `audit run`, which also works without one."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import get_args

from atomscope.cli.audit_local import run_locally
from atomscope.cli.config_file import read_config, read_settings
from atomscope.cli.connect import add_connection, audit_id, connect, number, out_folder
from atomscope.cli.failures import Interrupted
from atomscope.cli.findings import findings
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import card, columns
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.client import Audit
from atomscope.errors import UsageError
from atomscope.input_files import DATASET_ENDINGS
from atomscope.types.presets import PresetName
from atomscope.types.resources import AuditStatus


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    def run(args: Namespace, output: Output) -> int:
        if args.local:
            return run_locally(args, output, tree.load_runner)
        return _run(args, output)

    add = registry.add_command
    add("audit run", "audit a fine-tune and print its ranked behaviours and atoms", _configure_run, run)
    add("audit get", "one audit", _configure_one, _get)
    add("audit list", "audits, newest first", _configure_list, _list)
    add("audit cancel", "ask an audit to stop", _configure_one, _cancel)
    add("audit wait", "wait for an audit and print its ranked behaviours and atoms", _configure_wait, _wait)
    add("audit download", "bring an audit's bundle into a folder", _configure_download, _download)
    add("audit delete", "delete an audit that has ended, and its bundle", _configure_one, _delete)
    add(
        "audit delete-gradients",
        "let an ended audit go of its gradients, and keep all else of it",
        _configure_one,
        _delete_gradients,
    )


# ------------------------------------------------------------------ run


def _configure_run(parser: ArgumentParser) -> None:
    inputs = parser.add_argument_group("inputs (an id, or a local path, which is uploaded first)")
    inputs.add_argument("--base-model", required=True, metavar="ID|DIR")
    inputs.add_argument("--adapter", required=True, metavar="ID|DIR")
    inputs.add_argument("--dataset", required=True, metavar="ID|FILE", help=", ".join(DATASET_ENDINGS))
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the audit, JSON or TOML")
    parser.add_argument(
        "--preset", choices=get_args(PresetName), default="default", help="settings that --config may replace"
    )
    add_limit(parser)
    local = parser.add_argument_group("on this machine, without a service")
    local.add_argument(
        "--local", action="store_true", help="run the pipeline in this process; inputs are paths"
    )
    local.add_argument("--out", type=out_folder, metavar="BUNDLE", help="folder of the bundle; with --local")
    local.add_argument(
        "--shard-cache",
        type=out_folder,
        metavar="DIR",
        help="a folder in which audits share what they extracted; with --local",
    )
    local.add_argument(
        "--dry-run", action="store_true", help="only estimate time, memory and bytes; with --local"
    )
    add_waiting(parser, "on the service")
    add_connection(parser)


def add_waiting(parser: ArgumentParser, title: str) -> None:
    """The options of a command that starts an audit of the service."""
    remote = parser.add_argument_group(title)
    remote.add_argument("--name")
    remote.add_argument("--metadata", type=_pair, action="append", metavar="KEY=VALUE", help="repeatable")
    remote.add_argument("--no-wait", action="store_true", help="print the audit and return at once")
    remote.add_argument(
        "--timeout", type=number(float, 0), metavar="SECONDS", help="wait no longer than this"
    )


def add_limit(parser: ArgumentParser) -> None:
    """How much of what was found is printed."""
    parser.add_argument(
        "--limit", type=number(int, 1), default=20, help="behaviours, and atoms, to print (default 20)"
    )


def metadata_of(args: Namespace) -> dict[str, str]:
    """What `add_waiting` took; raises `UsageError` for options that contradict each other."""
    if args.no_wait and args.timeout is not None:
        raise UsageError("--timeout says how long to wait, and --no-wait not to")
    metadata = dict(args.metadata or [])
    if len(metadata) != len(args.metadata or []):
        raise UsageError("--metadata names one key twice")
    return metadata


def _run(args: Namespace, output: Output) -> int:
    for option, given in (
        ("--out", args.out is not None),
        ("--shard-cache", args.shard_cache is not None),
        ("--dry-run", args.dry_run),
    ):
        if given:
            raise UsageError(f"{option} goes with --local")
    metadata = metadata_of(args)
    read_config(args.config, args.preset)  # tells what is wrong by the file's name
    with connect(args) as client:
        audit = client.audits.create(
            base_model=args.base_model,
            adapter=args.adapter,
            dataset=args.dataset,
            preset=None if args.preset == "default" else args.preset,
            config=read_settings(args.config),
            name=args.name,
            metadata=metadata,
        )
        if args.no_wait:
            output.result({"audit": audit.resource}, audit.id)
            return EXIT_DONE
        output.note(f"audit {audit.id}")
        return finish(audit, args, output)


def finish(audit: Audit, args: Namespace, output: Output) -> int:
    """Wait for an audit of the service and print its atoms."""
    with _goes_on(audit.id):
        audit.wait(args.timeout, progress=False if output.json else None)
    for warning in audit.warnings:
        output.note(f"warning: {warning}")
    found, text = findings(audit, args.limit)
    output.result({"audit": audit.resource, **found}, text)
    output.note(f"atomscope behaviours show {audit.id} INDEX, or atoms show, shows the documents of one")
    return EXIT_DONE


@contextmanager
def _goes_on(audit: str) -> Generator[None]:
    """Tell a user who stops waiting that the audit does not stop."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"no longer waiting; audit {audit} goes on. `atomscope audit wait {audit}` comes back to it, "
            f"`atomscope audit cancel {audit}` stops it"
        ) from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ArgumentTypeError(f"not KEY=VALUE: {text!r}")
    return key, value


# --------------------------------------------------------------- others


def _configure_one(parser: ArgumentParser) -> None:
    parser.add_argument("audit", type=audit_id, help="aud_...")
    add_connection(parser)


def _configure_list(parser: ArgumentParser) -> None:
    parser.add_argument("--status", choices=get_args(AuditStatus))
    parser.add_argument("--limit", type=number(int, 1), default=20, help="audits to print (default 20)")
    add_connection(parser)


def _configure_wait(parser: ArgumentParser) -> None:
    _configure_one(parser)
    parser.add_argument(
        "--timeout", type=number(float, 0), metavar="SECONDS", help="wait no longer than this"
    )
    add_limit(parser)


def _configure_download(parser: ArgumentParser) -> None:
    _configure_one(parser)
    parser.add_argument("--out", type=out_folder, required=True, metavar="DIR")


def _get(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        audit = client.audits.get(args.audit)
    output.result(audit.resource, _card(audit))
    return EXIT_DONE


def _list(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        page = min(args.limit, 100)
        audits = list(islice(client.audits.list(status=args.status, limit=page), args.limit))
    rows = [(a.id, a.status, a.stage or "", a.resource.created_at, a.name or "") for a in audits]
    output.result(
        [audit.resource for audit in audits], columns(("id", "status", "stage", "created", "name"), rows)
    )
    return EXIT_DONE


def _cancel(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        audit = client.audits.get(args.audit).cancel()
    output.result(audit.resource, f"{audit.id} {audit.status}")
    return EXIT_DONE


def _wait(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        return finish(client.audits.get(args.audit), args, output)


def _download(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        folder = client.audits.get(args.audit).download(args.out)
    output.result({"audit": args.audit, "bundle": str(folder)}, str(folder))
    return EXIT_DONE


def _delete(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        deleted = client.audits.delete(args.audit)
    output.result(deleted, f"{deleted.id} deleted")
    return EXIT_DONE


def _delete_gradients(args: Namespace, output: Output) -> int:
    with connect(args) as client:
        audit = client.audits.get(args.audit).delete_gradients()
    output.result(audit.resource, f"{audit.id}: gradients {audit.resource.gradients}")
    return EXIT_DONE


def _card(audit: Audit) -> str:
    resource = audit.resource
    progress = resource.progress
    rows: list[tuple[str, object]] = [
        ("id", resource.id),
        ("name", resource.name),
        ("status", resource.status),
        ("stage", resource.stage),
        ("progress", f"{progress.done} of {progress.total} {progress.unit}" if progress else None),
        ("base model", resource.base_model),
        ("adapter", resource.adapter),
        ("data set", resource.dataset),
        ("refit of", resource.parent),
        ("documents", resource.n_documents),
        ("atoms", resource.n_atoms),
        ("created", resource.created_at),
        ("started", resource.started_at),
        ("ended", resource.ended_at),
        ("gradients", resource.gradients),
        ("gradients expire", resource.gradients_expire_at),
        *((f"metadata {key}", value) for key, value in sorted(resource.metadata.items())),
        *(("warning", warning) for warning in resource.warnings),
        ("error", f"{resource.error.code}: {resource.error.detail}" if resource.error else None),
    ]
    return card(rows)
