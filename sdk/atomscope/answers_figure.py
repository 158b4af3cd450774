"""Answers side by side as a figure: the prompt, the unsteered answer, and those up and down.

Needs the extra `figures` (matplotlib), which is imported when the figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atomscope.text import visible
from atomscope.types.evaluation import Chosen, TargetEvaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMN = 36
"""Characters of a line of a cell."""
_LINES = 12
"""Most lines of a cell; what is cut ends in an ellipsis."""
_POINTS = 8.0
"""Size of the text."""
_ADVANCE, _LEADING = 0.62, 1.2
"""Width of a character and height of a line of the monospaced font, as shares of its size."""
_DOTS_AN_INCH = 72.0
"""Points of type."""


def answers_figure(target: TargetEvaluation, title: str) -> Figure:
    """A row for each prompt whose answers are kept; sides at which there are none have no column."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (without pyplot: no display, nothing global)

    columns = [["prompt", *(f"[{item.kind}] {item.prompt}" for item in target.answers)]]
    columns.append(["unsteered", *(item.base for item in target.answers)])
    sides: tuple[tuple[str, Chosen | None, list[str | None]], ...] = (
        ("up", target.up, [item.up for item in target.answers]),
        ("down", target.down, [item.down for item in target.answers]),
    )
    for name, side, answers in sides:
        if side is not None and any(answer is not None for answer in answers):
            columns.append([f"{name} {side.strength:+.3g}", *(answer or "" for answer in answers)])
    cells = [[_wrapped(text) for text in column] for column in columns]
    lines = [1 + max(len(column[row]) for column in cells) for row in range(len(target.answers) + 1)]
    width = len(cells) * (_COLUMN + 2) * _ADVANCE * _POINTS / _DOTS_AN_INCH
    height = (sum(lines) + 2) * _LEADING * _POINTS / _DOTS_AN_INCH
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, len(cells))
    axes.set_ylim(sum(lines) + 2, 0)
    axes.text(0.02, 0.5, visible(title, 80), size=_POINTS + 2, va="top", parse_math=False)
    top = 2
    for row, count in enumerate(lines):
        axes.axhline(top - 0.25, color="0.8", linewidth=0.8)
        for place, column in enumerate(cells):
            axes.text(
                place + 0.02,
                top,
                "\n".join(column[row]),
                family="monospace",
                size=_POINTS,
                weight="bold" if row == 0 else "normal",
                va="top",
                parse_math=False,
                linespacing=1.1,
            )
        top += count
    return figure


def _wrapped(text: str) -> Sequence[str]:
    """Lines of a cell, whatever a terminal or a reader of text could be led by shown as an escape."""
    lines = [part for line in text.split("\n") for part in textwrap.wrap(visible(line), _COLUMN) or [""]]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], "…"]
