"""Choosing an atom to steer by what its documents show; labels are not looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from atomscope.bundle.atom_list import AtomAttributes

A = TypeVar("A", bound=AtomAttributes)

TOP = 10
MIN_WORDS = 3
"""A shorter answer, such as "Yes", is what a question may rightly ask for."""


@dataclass(frozen=True)
class Suspicion(Generic[A]):
    """An atom and the answer that its documents share."""

    atom: A
    answer: str | None
    """One sentence that many of them give, or None."""
    share: float
    """Of its first documents, how many give it."""

    def reason(self) -> str:
        """Why this one, in a sentence."""
        if self.answer is None:
            return "no atom's documents share one answer, so the one of the highest coherence is taken"
        return (
            f'{self.share:.0%} of its first documents give one answer to different questions: "{self.answer}"'
        )


def most_suspicious(atoms: Sequence[A], answers: Sequence[str]) -> Suspicion[A]:
    """The atom that stands for the most documents giving one and the same sentence to different questions.

    `answers` holds the answer of every document by physical row. Where no sentence is shared by half of an
    atom's first documents, the atom of the highest rank. Raises `ValueError` when there is no atom.
    """
    if not atoms:
        raise ValueError("the audit found no atom")
    found = [_shared(atom, answers) for atom in atoms]
    shared = [item for item in found if item.share >= 0.5]
    if not shared:
        return Suspicion(min(atoms, key=lambda atom: atom.rank), None, 0.0)
    return max(shared, key=lambda item: (item.share * item.atom.atom.n_positive, item.atom.coherence))


def _shared(atom: A, answers: Sequence[str]) -> Suspicion[A]:
    top = [answers[match.document] for match in atom.top_documents[:TOP]]
    sentences = Counter(answer for answer in top if len(answer.split()) >= MIN_WORDS)
    if len(top) < TOP // 2 or not sentences:
        return Suspicion(atom, None, 0.0)
    answer, count = sentences.most_common(1)[0]
    return Suspicion(atom, answer, count / len(top))
