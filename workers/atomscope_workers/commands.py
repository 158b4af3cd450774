"""What the `workers` extra adds to `atomscope`: audits in process, and the pipeline worker."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from atomscope.cli.registry import LocalRunner, Output, Registry


def register(registry: Registry) -> None:
    """Called when the command line starts: what a command needs is imported when it runs."""
    registry.add_command(
        "worker", "run a pipeline worker (settings from the environment)", _no_arguments, _worker
    )
    registry.add_command("demo", "fine-tune a small model, audit it and steer it", _configure_demo, _demo)
    registry.add_local_runner(_local_runner)


def _no_arguments(_parser: ArgumentParser) -> None:
    """The command takes no arguments."""


def _worker(_arguments: Namespace, _output: Output) -> int:
    from atomscope_workers.worker import run  # noqa: PLC0415

    return run()


def _configure_demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="where everything is kept (default .demo)"
    )


def _demo(arguments: Namespace, output: Output) -> int:
    from atomscope_workers.quiet import quieten  # noqa: PLC0415

    quieten()
    from atomscope_workers.demo.run import run  # noqa: PLC0415

    return run(arguments.dir, output)


def _local_runner() -> LocalRunner:
    from atomscope_workers.quiet import quieten  # noqa: PLC0415

    quieten()
    from atomscope_workers.local import InProcess  # noqa: PLC0415

    return InProcess()
