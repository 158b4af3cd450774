"""Figures of evaluations, as PNG: what each strength does, beside what random directions do, and its cost.

Needs the extra `figures` (matplotlib), which is imported when a figure is drawn.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atomscope.answers_figure import answers_figure
from atomscope.errors import MissingExtra
from atomscope.text import visible
from atomscope.types.evaluation import (
    Cost,
    EvaluationPoint,
    EvaluationResult,
    Measure,
    RandomDirections,
    TargetEvaluation,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (7.0, 7.5)
_DOTS = 120
_BAND = (5.0, 95.0)
"""Percentiles of the random directions between which the bands lie."""
_BANDS = (("equal_norm", "random, equal norm", "tab:gray"), ("equal_kl", "random, equal KL", "tab:olive"))


def require_matplotlib() -> None:
    """Raise `MissingExtra` unless figures can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtra("drawing figures", "figures") from error


def plot_evaluation(
    result: EvaluationResult,
    folder: str | Path,
    kl_budget: float | None = None,
    perplexity_budget: float | None = None,
) -> list[Path]:
    """One PNG for each target in `folder`, which is made: `behaviour-3.png`, `atom-7.png`; and one of its
    answers side by side, where they were kept: `behaviour-3-answers.png`.

    Above, what the detector says of inviting, neutral and all prompts against the strength, with 95%
    intervals, bands from the 5th to the 95th percentile of random directions and the unrelated atom, both
    comparable with all prompts; below, both costs at every strength that was measured, and the budgets where
    they are given, in nats per token and in times the unsteered perplexity.
    Raises `MissingExtra`, and `OSError` where nothing can be written.
    """
    require_matplotlib()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for target in result.targets:
        kind = "" if ":" in target.target else "atom-"
        name = f"{kind}{target.target.replace(':', '-')}"
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(figure_png(target, result.baseline_cost, kl_budget, perplexity_budget))
        if target.answers:
            paths.append(folder / f"{name}-answers.png")
            paths[-1].write_bytes(answers_png(target))
    return paths


def figure_png(
    target: TargetEvaluation,
    baseline: Cost,
    kl_budget: float | None = None,
    perplexity_budget: float | None = None,
) -> bytes:
    """The PNG of one target, `baseline` what the unsteered model costs; raises `MissingExtra`."""
    require_matplotlib()
    return _png(lambda: _figure(target, baseline, kl_budget, perplexity_budget))


def answers_png(target: TargetEvaluation) -> bytes:
    """The PNG of the answers of one target, side by side; raises `MissingExtra`."""
    require_matplotlib()
    return _png(lambda: answers_figure(target, _title(target)))


def _png(draw: Callable[[], Figure]) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of characters that the font lacks
        draw().savefig(content, format="png", dpi=_DOTS, metadata={"Software": None})
    return content.getvalue()


def _figure(
    target: TargetEvaluation, baseline: Cost, kl_budget: float | None, perplexity_budget: float | None
) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415  (without pyplot: no display, nothing global)

    figure = Figure(figsize=_INCHES, layout="constrained")
    ratios = (3, 2, 1) if target.points else (2, 1)
    *measures, below, lowest = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    if measures:
        _draw_measures(measures[0], target)
    (measures[0] if measures else below).set_title(visible(_title(target), 80), parse_math=False)
    kl = [point.cost.kl for point in target.curve]
    _draw_cost(below, target, kl, 0.0, kl_budget)
    below.set_ylabel("KL, nats per token")
    if below.get_legend_handles_labels()[0]:
        below.legend(fontsize="small")
    perplexity = [point.cost.perplexity for point in target.curve]
    own = baseline.perplexity
    _draw_cost(
        lowest, target, perplexity, own, None if perplexity_budget is None else perplexity_budget * own
    )
    lowest.set_ylabel("perplexity")
    lowest.set_xlabel("strength")
    return figure


def _title(target: TargetEvaluation) -> str:
    title = " ".join(part for part in (target.target, target.name) if part)
    return title if target.verdict is None else f"{title}: {target.verdict}"


def _draw_measures(axes: Axes, target: TargetEvaluation) -> None:
    strengths = np.array([point.strength for point in target.points])
    base = target.baseline
    if base is not None:
        for name, label, colour in _BANDS:
            _draw_band(
                axes, target.points, base.value, lambda point, of=name: getattr(point, of), label, colour
            )
    series = (
        ("inviting", target.baseline_inviting, "tab:red", "o-"),
        ("neutral", target.baseline_neutral, "tab:blue", "s-"),
        ("overall", target.baseline, "black", "d--"),
    )
    for name, unsteered, colour, form in series:
        measures: list[Measure] = [getattr(point, name) for point in target.points]
        places = strengths
        if unsteered is not None:
            place = int(np.searchsorted(strengths, 0.0))
            measures.insert(place, unsteered)
            places = np.insert(strengths, place, 0.0)
        values = np.array([measure.value for measure in measures])
        if name == "overall":  # the intervals of its two parts are there already
            axes.plot(places, values, form, color=colour, label="all prompts", markersize=4)
            continue
        ends = np.array([[measure.low for measure in measures], [measure.high for measure in measures]])
        errors = np.abs(ends - values)
        axes.errorbar(
            places,
            values,
            yerr=errors,
            fmt=form,
            color=colour,
            label=f"{name} prompts",
            capsize=2,
            markersize=4,
        )
    unrelated = [(point.strength, point.unrelated.value) for point in target.points if point.unrelated]
    if unrelated:
        axes.plot(*zip(*unrelated, strict=True), "x", color="tab:gray", label="all prompts, unrelated atom")
    shares = all(point.overall.hits is not None for point in target.points)
    axes.set_ylabel("share with the behaviour" if shares else "log-probability, nats per token")
    if shares:
        axes.set_ylim(-0.03, 1.03)
    _mark(
        axes, [side.strength for side in (target.up, target.down) if side is not None], "chosen", "tab:green"
    )
    axes.legend(fontsize="small")


def _draw_band(
    axes: Axes,
    points: Sequence[EvaluationPoint],
    base: float,
    of: Callable[[EvaluationPoint], RandomDirections | None],
    label: str,
    colour: str,
) -> None:
    """The band on each side of 0, from the unsteered measure on; shifts are signed as the strength is."""
    for sign in (-1.0, 1.0):
        ends: list[tuple[float, NDArray[np.float64]]] = [(0.0, np.array([base, base]))]
        for point in points:
            random = of(point)
            if random is not None and random.shifts and point.strength * sign > 0:
                low, high = np.percentile(random.shifts, _BAND)
                ends.append((point.strength, np.sort(base + sign * np.array([low, high]))))
        if len(ends) < 2:
            continue
        ends.sort(key=lambda end: end[0])
        band = np.array([end[1] for end in ends])
        told = label if sign > 0 or all(point.strength < 0 for point in points) else None
        axes.fill_between(
            [end[0] for end in ends], band[:, 0], band[:, 1], color=colour, alpha=0.3, label=told
        )


def _draw_cost(
    axes: Axes, target: TargetEvaluation, costs: Sequence[float], unsteered: float, budget: float | None
) -> None:
    """A cost at every strength of the curve and at 0, up to where strengths were tried or allowed."""
    strengths = np.array([0.0, *(point.strength for point in target.curve)])
    values = np.array([unsteered, *costs])
    order = np.argsort(strengths)
    axes.plot(strengths[order], values[order], "k.-")
    if budget is not None:
        axes.axhline(budget, color="tab:red", linestyle="--", label="budget")
    autos = [strength for strength in (target.auto_up, target.auto_down) if strength is not None]
    _mark(axes, autos, "largest within the budget", "tab:purple")
    tried = [*autos, *(point.strength for point in target.points)]
    reach = 1.1 * max((abs(strength) for strength in tried), default=math.inf)
    shown = values[np.abs(strengths) <= reach]
    least, most = float(shown.min()), max(float(shown.max()), unsteered if budget is None else budget)
    margin = 0.05 * (most - least or 1.0)
    axes.set_ylim(least - margin, most + margin)
    if tried:
        low, high = strengths.min(), strengths.max()
        axes.set_xlim(-reach if low < 0 else -0.05 * reach, reach if high > 0 else 0.05 * reach)


def _mark(axes: Axes, strengths: Sequence[float], label: str, colour: str) -> None:
    for place, strength in enumerate(strengths):
        axes.axvline(strength, color=colour, linestyle=":", label=label if place == 0 else None)
