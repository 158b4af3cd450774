"""Asking a bundle in this process, which takes the extra `workers` and the base model that was audited."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from atomscope.bundle import Bundle
from atomscope.cli.connect import number
from atomscope.cli.plugins import is_missing_extra
from atomscope.cli.registry import LocalRunner, Output
from atomscope.client import Audit
from atomscope.client._progress import display
from atomscope.errors import MissingExtra, UsageError
from atomscope.types.resources import Progress

Load = Callable[[], LocalRunner] | None
OnProgress = Callable[[Progress], None]


def add_base_model(parser: ArgumentParser) -> None:
    """`--base-model`, which a bundle needs, and `--timeout`, which only the service has use for."""
    parser.add_argument(
        "--base-model", type=Path, metavar="DIR", help="of a bundle: the base model that was audited"
    )
    parser.add_argument("--timeout", type=number(float, 0), help="of an audit: seconds to wait")


def check_base_model(args: Namespace, target: Audit | Bundle) -> None:
    """Raise `UsageError` unless a bundle has its base model, and an audit of the service none."""
    if not isinstance(target, Bundle):
        if args.base_model is not None:
            raise UsageError("--base-model is for a bundle: the service has the base model of its audits")
    elif args.timeout is not None:
        raise UsageError("--timeout has no meaning for a bundle")
    elif args.base_model is None:
        raise UsageError("a bundle needs --base-model DIR, the base model that was audited")


@contextmanager
def in_process(load: Load, what: str, output: Output) -> Generator[tuple[LocalRunner, OnProgress]]:
    """The pipeline, and what draws how far `what` is on a terminal; raises `MissingExtra`."""
    bars = display(False if output.json else None)

    def on_progress(progress: Progress) -> None:
        bars.update(what, progress.done, progress.total, progress.unit)

    try:
        if load is None:
            raise MissingExtra(f"{what} BUNDLE", "workers")
        yield load(), on_progress
    except ModuleNotFoundError as error:
        if not is_missing_extra(error):
            raise
        raise MissingExtra(f"{what} BUNDLE", "workers") from error
    finally:
        bars.close()
