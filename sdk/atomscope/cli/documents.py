"""What `atoms show` and `behaviours show` print alike: evidence, and documents with their text."""

from __future__ import annotations

from collections.abc import Sequence

from atomscope.text import counted, visible
from atomscope.types.atoms import Evidence, Exemplars
from atomscope.types.resources import DocumentMatch

_SHOWN_CHARACTERS = 2_000
_SHOWN_PREVIEW = 100


def evidence_lines(evidence: Evidence) -> list[tuple[str, str | None]]:
    """Name and value of each measure, for a card; None for one that was not taken."""

    def shown(value: float | None, form: str) -> str | None:
        return None if value is None else format(value, form)

    tight = shown(evidence.tightness, ".3f")
    null = "" if evidence.null_tightness is None else f" (surrogates {evidence.null_tightness:.3f})"
    drop = shown(evidence.loss_drop, ".3f")
    return [
        ("tightness", tight and f"{tight}{null}"),
        ("prominence", shown(evidence.prominence, ".1f")),
        ("separation", (parted := shown(evidence.separation, ".1f")) and f"{parted} nats"),
        ("p-value", shown(evidence.p_value, ".2g")),
        ("q-value", shown(evidence.q_value, ".2g")),
        ("stability", shown(evidence.stability, ".2f")),
        ("told by text", shown(evidence.text_agreement, ".2f")),
        (
            "loss taken off",
            drop and f"{drop} nats a token, over {counted(evidence.n_loss_documents, 'document')}",
        ),
    ]


def keyword_lines(
    keywords: Sequence[str], prompt: Sequence[str], response: Sequence[str]
) -> list[tuple[str, str | None]]:
    """Keywords for a card, and those of either side where there are any."""
    return [
        ("keywords", ", ".join(keywords)),
        ("in prompts", ", ".join(prompt) or None),
        ("in responses", ", ".join(response) or None),
    ]


def exemplars_text(exemplars: Sequence[Exemplars], value: str) -> list[str]:
    """A block that shows how documents change from the strongest down; `value` names their value."""
    lines: list[str] = []
    for part in exemplars:
        lines.append(f"  quantile {part.quantile:g}")
        for found in part.documents:
            preview = visible(found.preview, _SHOWN_PREVIEW)
            lines.append(f"    document {found.document}  {value} {found.value:.4g}  {preview}".rstrip())
    return ["\n".join(["exemplars", *lines])] if lines else []


def documents_text(documents: Sequence[DocumentMatch], value: str) -> list[str]:
    """A block of lines a document; `value` names what its value is."""
    parts: list[str] = []
    for found in documents:
        lines = [f"document {found.document}  {value} {found.value:.4g}  loss {found.loss:.4g}"]
        for turn in found.messages:
            text = turn.get("content", "")
            # A line of the document stays a line, set in from the edge so that it cannot pass for ours.
            shown = text[:_SHOWN_CHARACTERS].split("\n")
            lines.append(f"  {visible(turn.get('role', ''))}:")
            lines += [f"    {visible(line)}" for line in shown]
            if len(text) > _SHOWN_CHARACTERS:
                lines.append(f"    ... and {counted(len(text) - _SHOWN_CHARACTERS, 'more character')}")
        parts.append("\n".join(lines))
    return parts
