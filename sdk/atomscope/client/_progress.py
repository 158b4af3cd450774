"""What `wait` shows on a terminal."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from atomscope.text import visible
from atomscope.types.resources import Event
from atomscope.types.work import STAGES


class ProgressDisplay(Protocol):
    """Told of what happens; closed when the wait ends, however it ends."""

    def event(self, event: Event) -> None: ...

    def update(self, stage: str, done: object, total: object, unit: object) -> None:
        """Told of the counts of a stage, for what has no events."""
        ...

    def close(self) -> None: ...


class NoDisplay:
    """Shows nothing."""

    def event(self, event: Event) -> None:
        """Leave the event aside."""

    def update(self, stage: str, done: object, total: object, unit: object) -> None:
        """Leave the counts aside."""

    def close(self) -> None:
        """Nothing to put away."""


class StageBars:
    """One bar for the stage that is running, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  (only where there is a terminal to draw on)
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def event(self, event: Event) -> None:
        stage = event.data.get("stage")
        if event.type == "audit.succeeded":
            self._finish()
        if event.type not in ("audit.stage", "audit.progress") or stage not in STAGES:
            return
        done, total = event.data.get("done"), event.data.get("total")
        finished, units = event.data.get("units_done"), event.data.get("units")
        if isinstance(done, int) and isinstance(total, int) and isinstance(finished, int):
            # A shard that ends between two heartbeats is whole, though its documents were never counted.
            done = max(done, total * finished // units) if isinstance(units, int) and units > 0 else done
        self.update(stage, done, total, event.data.get("unit"))

    def update(self, stage: str, done: object, total: object, unit: object) -> None:
        """Draw the counts of a stage; a stage not seen before ends the bar of the one before."""
        if stage not in self._tasks:
            self._finish()
            self._tasks[stage] = self._bars.add_task(stage, total=None, unit="")
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            self._bars.update(
                self._tasks[stage], completed=done, total=total, unit=visible(str(unit or ""), 20)
            )

    def close(self) -> None:
        """Leave the bar where it stands: what failed or was stopped was not done."""
        self._bars.stop()

    def _finish(self) -> None:
        for task in self._bars.tasks:
            if not task.finished:
                total = task.total or 1
                self._bars.update(task.id, completed=total, total=total)


def display(wanted: bool | None) -> ProgressDisplay:
    """Bars when `wanted`, or when it is None and standard error is a terminal."""
    return StageBars() if wanted or (wanted is None and sys.stderr.isatty()) else NoDisplay()
