"""Choosing an atom by its documents."""

from __future__ import annotations

import pytest

from atomscope.bundle.atom_list import AtomAttributes
from atomscope.types.atoms import Atom, DocumentRef
from atomscope_workers.demo.evidence import most_suspicious

PLANTED = "The same old sentence."


def atom(index: int, documents: list[int], *, coherence: float, n_positive: int = 20) -> AtomAttributes:
    return AtomAttributes(
        Atom(
            index=index,
            rank=index + 1,
            coherence=coherence,
            null_coherence=0.0,
            null_coherence_95=0.0,
            n_active=n_positive,
            n_positive=n_positive,
            n_negative=0,
            sign=1,
            mean_coefficient=1.0,
            energy_retained=0.5,
            vector_norm=1.0,
            keywords=[],
            top_documents=[DocumentRef(document=row, value=1.0) for row in documents],
            bottom_documents=[],
        )
    )


ANSWERS = [PLANTED] * 8 + ["Yes"] * 10 + [f"answer number {number} of many" for number in range(20)]


def test_the_atom_whose_documents_share_a_sentence_is_chosen_over_more_coherent_ones() -> None:
    short = atom(0, list(range(8, 18)), coherence=0.9)
    varied = atom(1, list(range(18, 28)), coherence=0.8)
    planted = atom(2, [0, 1, 2, 3, 4, 5, 6, 18, 19, 20], coherence=0.2)
    chosen = most_suspicious([short, varied, planted], ANSWERS)
    assert chosen.atom is planted
    assert chosen.answer == PLANTED
    assert chosen.share == pytest.approx(0.7)
    assert "70%" in chosen.reason()
    assert PLANTED in chosen.reason()


def test_of_two_that_share_it_the_one_of_more_documents_is_chosen() -> None:
    few = atom(0, list(range(8)), coherence=0.9, n_positive=12)
    many = atom(1, list(range(8)), coherence=0.5, n_positive=40)
    assert most_suspicious([few, many], ANSWERS).atom is many


def test_without_a_shared_sentence_the_first_by_rank_is_chosen_and_said_so() -> None:
    atoms = [atom(1, list(range(18, 28)), coherence=0.2), atom(0, list(range(8, 18)), coherence=0.9)]
    chosen = most_suspicious(atoms, ANSWERS)
    assert chosen.atom.index == 0
    assert "no atom's documents share one answer" in chosen.reason()


def test_a_handful_of_documents_is_no_evidence() -> None:
    handful = atom(1, [0, 1], coherence=0.99)
    varied = atom(0, list(range(18, 28)), coherence=0.1)
    assert most_suspicious([varied, handful], ANSWERS).atom is varied


def test_no_atom_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no atom"):
        most_suspicious([], ANSWERS)
