"""What `atoms` and `steer` work on: an audit of the service, or a bundle opened without one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from contextlib import contextmanager

from atomscope.bundle import Bundle, open_bundle
from atomscope.cli.connect import add_connection, connect, is_audit_id
from atomscope.client import Audit
from atomscope.errors import UsageError


def add_target(parser: ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="AUDIT|BUNDLE",
        help="an audit's id (aud_...), or a bundle: a folder, file:///... or s3://... "
        "(a folder that is named like an id is written ./aud_...)",
    )
    add_connection(parser)


@contextmanager
def opened(args: Namespace) -> Generator[Audit | Bundle]:
    """The target, open while the context lasts; raises `UsageError` for options it has no use for."""
    if is_audit_id(args.target):
        with connect(args) as client:
            yield client.audits.get(args.target)
        return
    if args.base_url is not None or args.api_key_file is not None:
        raise UsageError(f"{args.target!r} is a bundle, not an audit's id: no service is asked")
    yield open_bundle(args.target)
