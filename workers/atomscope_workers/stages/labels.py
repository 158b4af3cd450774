"""Labels of what an audit found, where it asks for them: which documents are shown, and what is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from atomscope.bundle import layout
from atomscope.errors import InvalidInput
from atomscope_workers.labels.asking import Question, ask_labels, label_warnings
from atomscope_workers.labels.endpoint import LabelEndpoint
from atomscope_workers.labels.prompt import label_messages, own_places
from atomscope_workers.labels.settings import LabelSettings, required_label_settings
from atomscope_workers.pipeline.keywords import left_out
from atomscope_workers.pipeline.seeds import seeded
from atomscope_workers.pipeline.sides import sides
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.rows import StoredRow

Kind = Literal["behaviour", "atom"]


@dataclass(frozen=True)
class Subject:
    """A behaviour or atom to be named."""

    kind: Kind
    index: int
    keywords: list[str]
    active: NDArray[np.int64]
    """Positions of its documents among all, strongest first."""


def label(
    ctx: StageContext,
    subjects: Sequence[Subject],
    documents: NDArray[np.int64],
    rows: Mapping[int, StoredRow],
) -> tuple[dict[tuple[Kind, int], str], list[str]]:
    """Ask for a label of each subject, in order, and write `atoms/labels.json`; labels and warnings.

    `documents` (N,) are the physical rows of all documents, `rows` what these hold.

    Nothing that the endpoint does fails the audit. `validate` refused an audit that nobody could label; a
    worker that names no endpoint nonetheless, unlike the one that validated, is told of in a warning.
    """
    try:
        settings = required_label_settings(os.environ)
    except InvalidInput as error:
        return {}, [f"no label was asked for: {error.detail}"]
    subjects = [subject for subject in subjects if len(subject.active)]  # others have nothing to be named by
    questions = (_question(ctx, subject, documents, rows, settings) for subject in subjects)

    def checkpoint(done: int, total: int) -> None:
        ctx.checkpoint()
        ctx.progress(done, total, "labels")

    with LabelEndpoint(settings, ctx.checkpoint) as endpoint:
        found = ask_labels(questions, len(subjects), settings, endpoint, checkpoint)
    ctx.write_bytes(layout.LABELS, msgspec.json.format(msgspec.json.encode(found), indent=1))
    labels: dict[tuple[Kind, int], str] = {
        (request.kind, request.index): request.label
        for request in found.requests
        if request.label is not None
    }
    return labels, label_warnings(found)


def _question(
    ctx: StageContext,
    subject: Subject,
    documents: NDArray[np.int64],
    rows: Mapping[int, StoredRow],
    settings: LabelSettings,
) -> Question:
    """Excerpts of documents of high quantiles, and of half as many others, drawn by the audit's seed."""
    config = ctx.spec.config
    out = left_out(len(documents), subject.active, subject.active[: config.top_documents])
    others = np.setdiff1d(np.arange(len(documents)), out)
    most = settings.documents // 3
    generator = seeded(config.seed, f"labels/{subject.kind}/{subject.index}")
    drawn = torch.randperm(len(others), generator=generator)[:most].numpy()
    contrast: list[int] = documents[np.sort(others[drawn])].tolist()
    places = own_places(len(subject.active), settings.documents - most)
    own: list[int] = documents[subject.active[places]].tolist()
    messages = label_messages(
        [sides(rows[row].messages) for row in own],
        [sides(rows[row].messages) for row in contrast],
        subject.keywords,
        settings.characters,
    )
    return Question(
        kind=subject.kind, index=subject.index, documents=own, contrast=contrast, messages=messages
    )
