"""An evaluation as one HTML page: verdicts, figures, answers side by side, and what else was moved.

The page is whole in itself, asks for nothing from elsewhere and runs nothing; answers and prompts, which are
anybody's, are text in it. Needs the extra `figures`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from atomscope.figures import figure_png
from atomscope.text import counted, visible
from atomscope.types.evaluation import Chosen, EvaluationPoint, EvaluationResult, Measure, TargetEvaluation

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_POINTS = (
    "strength",
    "inviting",
    "neutral",
    "KL",
    "shift",
    "random, equal norm",
    "random, equal KL",
    "unrelated atom",
    "",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border: 1px solid #ccc; padding: .3rem .5rem; text-align: left; vertical-align: top }
td.text { white-space: pre-wrap; overflow-wrap: anywhere }
img { max-width: 100% }
"""


def write_evaluation(
    result: EvaluationResult,
    path: str | Path,
    kl_budget: float | None = None,
    perplexity_budget: float | None = None,
) -> Path:
    """Write the page to a file, whole or not at all.

    Raises `MissingExtra` without matplotlib, and `OSError` where nothing can be written.
    """
    path = Path(path)
    page = evaluation_page(result, kl_budget, perplexity_budget)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def evaluation_page(
    result: EvaluationResult, kl_budget: float | None = None, perplexity_budget: float | None = None
) -> str:
    """The page; raises `MissingExtra`."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>Steering evaluation</title><style>{_STYLE}</style></head><body>",
        "<h1>Steering evaluation</h1>",
        f"<p>Cost was measured on {counted(result.neutral_documents, 'neutral document')} of "
        f"{counted(result.n_neutral_tokens, 'token')}, of perplexity {result.baseline_cost.perplexity:.3g} "
        "unsteered. Intervals are of 95%; of random directions the 95th percentile of shifts is told.</p>",
        *(f"<p>Warning: {_text(warning)}</p>" for warning in result.warnings),
        _table(("target", "verdict", "up", "down"), (_summary(target) for target in result.targets)),
    ]
    for target in result.targets:
        image = figure_png(target, result.baseline_cost, kl_budget, perplexity_budget)
        parts += _target(target, image)
    return "\n".join([*parts, "</body></html>", ""])


def _summary(found: TargetEvaluation) -> Sequence[str]:
    return _text(_title(found)), _text(found.verdict or ""), _side(found.up), _side(found.down)


def _target(found: TargetEvaluation, figure: bytes) -> Iterator[str]:
    title = _text(_title(found))
    yield f"<h2>{title}</h2>"
    image = base64.b64encode(figure).decode("ascii")
    yield f'<img alt="What each strength of {title} does and costs" src="data:image/png;base64,{image}">'
    yield f"<p>{_gain(found)}</p>"
    if found.points:
        yield _table(_POINTS, _points(found))
    if found.answers:
        yield "<h3>Answers side by side</h3>"
        header = ("", "prompt", "unsteered", f"up {_strength(found.up)}", f"down {_strength(found.down)}")
        yield _table(
            header,
            (
                (answer.kind, *map(_text, (answer.prompt, answer.base, answer.up or "", answer.down or "")))
                for answer in found.answers
            ),
            text=True,
        )
    if found.others:
        yield f"<h3>What else moved at {_strength(found.down)}</h3>"
        moved = sorted(found.others.items(), key=lambda item: -abs(item[1]))
        rows = ((_text(key), f"{change:+.3f}") for key, change in moved)
        yield _table(("behaviour", "nats per token"), rows)


def _points(found: TargetEvaluation) -> Iterator[Sequence[str]]:
    if found.baseline_inviting is not None and found.baseline_neutral is not None:
        both = _measure(found.baseline_inviting), _measure(found.baseline_neutral)
        yield "0", *both, "0", "", "", "", "", "unsteered"
    for point in found.points:
        unrelated = found.unrelated_shift(point)
        yield (
            f"{point.strength:+.3g}",
            _measure(point.inviting),
            _measure(point.neutral),
            f"{point.cost.kl:.3g}",
            _change(point, point.shift),
            "" if point.equal_norm is None else _change(point, point.equal_norm.percentile_95),
            "" if point.equal_kl is None else _change(point, point.equal_kl.percentile_95),
            "" if unrelated is None else _change(point, unrelated),
            point.verdict or ("" if point.within_budget else "beyond the budget"),
        )


def _measure(measure: Measure) -> str:
    if measure.hits is None:
        return f"{measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"
    return f"{measure.value:.0%} ({measure.low:.0%} to {measure.high:.0%}) of {measure.n}"


def _change(point: EvaluationPoint, shift: float) -> str:
    """A shift, in points of a share or in nats."""
    return f"{100 * shift:+.0f} points" if point.overall.hits is not None else f"{shift:+.3f} nats"


def _gain(found: TargetEvaluation) -> str:
    told = (
        f"Its own documents gain {found.gain:+.3f} nats per token from the least step up, less the same down"
    )
    end = "." if found.turns_up else ": up is no more of them."
    return told + end + ("" if found.unrelated is None else f" The unrelated atom is {found.unrelated}.")


def _side(side: Chosen | None) -> str:
    return "none within the budget" if side is None else f"{_strength(side)}, KL {side.kl:.3g}"


def _strength(side: Chosen | None) -> str:
    return "" if side is None else f"{side.strength:+.3g}"


def _title(found: TargetEvaluation) -> str:
    return " ".join(part for part in (found.target, found.name) if part)


def _text(text: str) -> str:
    """Foreign text: its lines kept, other control and formatting characters shown as escapes."""
    return escape("\n".join(visible(line) for line in text.split("\n")))


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], *, text: bool = False) -> str:
    """Cells are HTML already."""
    cell = '<td class="text">' if text else "<td>"
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(f'{cell}{value}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
