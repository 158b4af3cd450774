"""`atomscope audit run --local`: the pipeline of the workers extra, in this process."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from atomscope.bundle import open_bundle
from atomscope.cli.config_file import read_config
from atomscope.cli.failures import Interrupted
from atomscope.cli.findings import findings
from atomscope.cli.plugins import is_missing_extra
from atomscope.cli.registry import EXIT_DONE, Estimate, LocalRun, LocalRunner, Output
from atomscope.cli.tables import card, size_text, time_text
from atomscope.client._progress import StageBars
from atomscope.errors import MissingExtra, UsageError
from atomscope.types.resources import Progress
from atomscope.types.work import Stage

_REMOTE = ("name", "metadata", "no_wait", "timeout", "base_url", "api_key_file")

OnProgress = Callable[[Stage, Progress], None]


def run_locally(args: Namespace, output: Output, load: Callable[[], LocalRunner] | None) -> int:
    """Run or estimate the audit of `args`; raises `UsageError`, `InvalidInput`, `NothingToAudit`."""
    for option in _REMOTE:
        value = getattr(args, option)
        if value is not None and value is not False:
            raise UsageError(f"--{option.replace('_', '-')} has no meaning with --local")
    if args.out is None and not args.dry_run:
        raise UsageError("--local needs --out BUNDLE, the folder that the bundle is written to")
    request = LocalRun(
        base_model=_folder(args.base_model, "--base-model"),
        adapter=_folder(args.adapter, "--adapter"),
        dataset=_file(args.dataset),
        # An estimate writes nothing; the name is only what the bundle would have been called.
        out=Path("bundle") if args.out is None else args.out,
        config=read_config(args.config, args.preset),
        shard_cache=args.shard_cache,
    )
    try:
        if load is None:
            raise MissingExtra("audit run --local", "workers")
        runner = load()
        if args.dry_run:
            return _estimate(runner, request, output)
        return show_local(lambda tell: runner.run(request, tell), args.limit, output)
    except ModuleNotFoundError as error:
        if not is_missing_extra(error):
            raise
        raise MissingExtra("audit run --local", "workers") from error


def show_local(run: Callable[[OnProgress], Path], limit: int, output: Output) -> int:
    """Run what makes a bundle in this process, with its progress on a terminal, and print its atoms."""
    bars = StageBars() if sys.stderr.isatty() and not output.json else None

    def on_progress(stage: Stage, progress: Progress) -> None:
        if bars is not None:
            bars.update(stage, progress.done, progress.total, progress.unit)

    try:
        folder = run(on_progress)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; the same command goes on where this one was") from error
    finally:
        if bars is not None:
            bars.close()
    bundle = open_bundle(folder)
    for warning in bundle.report.warnings:
        output.note(f"warning: {warning}")
    found, text = findings(bundle, limit)
    output.result({"bundle": str(folder), **found, "warnings": bundle.report.warnings}, text)
    output.note(f"bundle: {folder}")
    return EXIT_DONE


def _estimate(runner: LocalRunner, request: LocalRun, output: Output) -> int:
    estimate: Estimate = runner.estimate(request)
    rows: list[tuple[str, object]] = [
        ("documents", estimate.documents),
        ("tokens", estimate.tokens),
        ("shards", estimate.shards),
        ("time", time_text(estimate.seconds)),
        ("memory", size_text(estimate.memory_bytes)),
        ("bundle", size_text(estimate.bundle_bytes)),
        *sorted(estimate.details.items()),
    ]
    output.result(estimate, card(rows))
    return EXIT_DONE


def _folder(text: str, option: str) -> Path:
    path = _path(text, option)
    if not path.is_dir():
        raise UsageError(f"{option}: {text!r} is not a folder; with --local it is a path")
    return path


def _file(text: str) -> Path:
    path = _path(text, "--dataset")
    if not path.is_file():
        raise UsageError(f"--dataset: {text!r} is not a file; with --local it is a path")
    return path


def _path(text: str, option: str) -> Path:
    if "\0" in text:
        raise UsageError(f"{option}: not a path: {text!r}")
    return Path(text)
