"""How likely training documents are to a steered model: a target's own, and those of other behaviours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atomscope.bundle import Bundle
from atomscope.steering import Target
from atomscope_workers.datasets.documents import TokenizedDocument
from atomscope_workers.evaluation.cost import mean_log_probabilities
from atomscope_workers.evaluation.directions import Dial
from atomscope_workers.evaluation.documents import own_documents, touched
from atomscope_workers.evaluation.passes import Passes
from atomscope_workers.evaluation.subject import Subject

MOST = 8
"""Documents of one target or behaviour, its strongest."""


@dataclass(frozen=True)
class Texts:
    """The audited documents under steered models; log-probabilities are means per target token, in nats."""

    bundle: Bundle
    subject: Subject
    tokens: Mapping[int, TokenizedDocument]
    """By physical row; each has a target."""
    passes: Passes

    def gain(self, target: Target, dial: Dial, strengths: Sequence[float]) -> float:
        """That of the target's own documents at the least strength up, less that at the same down."""
        documents = self._first(own_documents(self.bundle, target))
        least = min(
            [item for item in strengths if item > 0] or [abs(item) for item in strengths], default=0.0
        )
        if not documents or least == 0:
            return 0.0
        up, down = (self._means(documents, dial, strength).mean() for strength in (least, -least))
        return float(up - down)

    def others(self, target: Target, dial: Dial, strength: float) -> dict[str, float]:
        """How that of every other behaviour's documents changes at a strength, by the behaviour's key.

        Of documents on which the target has no strength; a behaviour without any is left out, and so is the
        one that an atom belongs to.
        """
        own = touched(self.bundle, target)
        documents: dict[str, list[TokenizedDocument]] = {}
        for item in self.bundle.behaviours:
            other = Target("behaviour", item.index)
            if other == target or (target.kind == "atom" and target.index in item.behaviour.atoms):
                continue
            rows = [row for row in own_documents(self.bundle, other) if row not in own]
            if chosen := self._first(rows):
                documents[other.key] = chosen
        listed = list({item.document: item for part in documents.values() for item in part}.values())
        if not listed:
            return {}
        change = self._means(listed, dial, strength) - self._means(listed, dial, 0.0)
        by_row = dict(zip((item.document for item in listed), change.tolist(), strict=True))
        return {
            key: float(np.mean([by_row[item.document] for item in part])) for key, part in documents.items()
        }

    def _means(
        self, documents: Sequence[TokenizedDocument], dial: Dial, strength: float
    ) -> NDArray[np.float64]:
        step = dial.step(strength * dial.unit) if strength else None
        found = mean_log_probabilities(self.subject, documents, step)
        self.passes.done()
        return found

    def _first(self, rows: Sequence[int]) -> list[TokenizedDocument]:
        return [self.tokens[row] for row in rows if row in self.tokens][:MOST]
