"""How the `workers` and `service` extras add commands to `atomscope`.

An extra names a function in the entry-point group `atomscope.commands`; it is called with the
`Registry` when the command line starts. Registration must be cheap: import what a command needs when
it runs, since `atomscope --help` loads every registered extra.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from atomscope.bundle import Bundle
from atomscope.types.attribution import AttributionQuery, AttributionResult
from atomscope.types.evaluation import EvaluationQuery, EvaluationResult
from atomscope.types.resources import Progress
from atomscope.types.spec import AuditConfig
from atomscope.types.work import Stage

EXIT_DONE = 0
EXIT_ERROR = 1
"""Anything unexpected: the service cannot be reached, a file cannot be written."""
EXIT_FAILED = 2
"""The audit failed, bad input included."""
EXIT_NOTHING = 3
"""Nothing to audit: an empty set, one document, no target tokens."""
EXIT_USAGE = 4


class LocalRun(msgspec.Struct, kw_only=True, frozen=True):
    """`atomscope audit run --local`: paths instead of ids."""

    base_model: Path
    adapter: Path
    dataset: Path
    out: Path
    config: AuditConfig
    shard_cache: Path | None = None
    """A folder of extracted shards: the audit takes what it can use, and puts there what it extracts."""


class LocalRefit(msgspec.Struct, kw_only=True, frozen=True):
    """`atomscope audit refit BUNDLE|WORK`: the fit of a local audit once more."""

    source: str
    """A bundle's folder or address, or the work folder of an audit under way."""
    out: Path
    base_model: Path | None = None
    """Where the audited base model is now, if no longer where it was."""
    preset: str | None = None
    settings: dict[str, Any] = {}
    """Fields of `AuditConfig`; the others are the preset's, or the parent's."""


class Estimate(msgspec.Struct, kw_only=True, frozen=True):
    """`--dry-run`: what an audit would cost on this machine."""

    documents: int
    tokens: int
    shards: int
    seconds: float
    """Wall time of the whole audit, from a timed probe of this machine."""
    memory_bytes: int
    """Peak resident memory of a worker."""
    bundle_bytes: int
    details: dict[str, Any] = {}


class LocalRunner(Protocol):
    """The in-process pipeline, registered by the `workers` extra."""

    def run(self, request: LocalRun, on_progress: Callable[[Stage, Progress], None]) -> Path:
        """Run the audit and return the bundle's folder; raises `InvalidInput`, `NothingToAudit`."""
        ...

    def refit(self, request: LocalRefit, on_progress: Callable[[Stage, Progress], None]) -> Path:
        """Fit stored gradients once more; the new bundle's folder. Raises `InvalidInput`, `BundleError`."""
        ...

    def estimate(self, request: LocalRun) -> Estimate: ...

    def attribute(
        self,
        bundle: Bundle,
        base_model: Path,
        query: AttributionQuery,
        on_progress: Callable[[Progress], None],
    ) -> AttributionResult:
        """Trace a query in a bundle; raises `InvalidInput`, `BundleError`."""
        ...

    def evaluate(
        self,
        bundle: Bundle,
        base_model: Path,
        query: EvaluationQuery,
        on_progress: Callable[[Progress], None],
    ) -> EvaluationResult:
        """Steer targets of a bundle and measure it; raises `InvalidInput`, `BundleError`."""
        ...


class Output(Protocol):
    """Where a command's results go: text for people, or one JSON document with `--json`."""

    json: bool

    def result(self, value: Any, text: str | None = None) -> None:  # noqa: ANN401
        """Print `value` (a Struct, list or dict) as JSON, or else `text`. Control characters are escaped."""
        ...

    def note(self, text: str) -> None:
        """A line for people, on standard error; nothing with `--json`."""
        ...

    def complain(self, text: str) -> None:
        """A line on standard error, with `--json` too."""
        ...


Run = Callable[[Namespace, Output], int]
"""Runs a parsed command and returns the exit status."""


class Registry(Protocol):
    """What a registering function may add."""

    def add_command(
        self, path: str, summary: str, configure: Callable[[ArgumentParser], None], run: Run
    ) -> None:
        """Add a command such as `"up"` or `"models register"` (groups are made as needed)."""
        ...

    def add_local_runner(self, load: Callable[[], LocalRunner]) -> None:
        """Provide `audit run --local`; `load` is called only when it is used."""
        ...
