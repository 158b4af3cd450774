"""What is said of an atom: whose it is, how alike they are, and, where there is none, that there is none."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from atomscope.bundle import layout, read_coefficients
from atomscope.types.atoms import Atom, AuditReport, Behaviour, Evidence
from atomscope.types.hierarchy import Hierarchy
from atomscope.types.spec import AuditConfig
from atomscope_workers.pipeline.ranking import own_score, scores
from atomscope_workers.stages import characterise
from atomscope_workers.stages.evidence import LOSS_DOCUMENTS
from tests.workers.stages.units import (
    CONFIG,
    SHAPES,
    Audit,
    clustered_gradients,
    extracted,
    random_gradients,
)

CLUSTERS = [0, 1, 2, 3] * 5
WORDS = ["apple", "pear", "plum", "fig"]
"""Of the documents of each cluster."""


@pytest.fixture(scope="module")
def gradients() -> dict[str, NDArray[np.float32]]:
    return clustered_gradients(CLUSTERS, noise=0.6)


@pytest.fixture(scope="module")
def audit(gradients: dict[str, NDArray[np.float32]], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    texts = [f"{WORDS[cluster]} of {place}" for place, cluster in enumerate(CLUSTERS)]
    audit = extracted(tmp_path_factory.mktemp("characterise") / "work", gradients, CONFIG, texts=texts)
    audit.through("characterise")
    return audit


def _characterised(
    work: Path, gradients: dict[str, NDArray[np.float32]], config: AuditConfig = CONFIG
) -> tuple[Audit, list[str]]:
    audit = extracted(work, gradients, config)
    return audit, audit.through("characterise").summary["warnings"]


def _report(audit: Audit) -> AuditReport:
    audit.run("report")
    return msgspec.json.decode(audit.file(layout.REPORT).read_bytes(), type=AuditReport)


def test_documents_are_named_by_physical_row_strongest_first_with_the_stored_codes(audit: Audit) -> None:
    codes = read_coefficients(audit.file(layout.COEFFICIENTS))
    assert len(audit.atoms()) == 4
    for atom in audit.atoms():
        rows, values = codes.of_atom(atom.index)
        stored = dict(zip(rows.tolist(), values.tolist(), strict=True))
        positive = sorted((row for row in stored if stored[row] > 1e-6), key=lambda row: -stored[row])
        assert [item.document for item in atom.top_documents] == positive[:4]
        assert [item.value for item in atom.top_documents] == [stored[row] for row in positive[:4]]
        assert (atom.n_positive, atom.n_negative) == (len(positive), atom.n_active - len(positive))
        assert all(item.value < 0 for item in atom.bottom_documents)
        assert {item.document for item in atom.bottom_documents}.isdisjoint(positive)


def test_an_atom_shows_its_cluster_by_document_word_and_preview(audit: Audit) -> None:
    found: list[int] = []
    for atom in audit.atoms():
        clusters = {CLUSTERS[item.document // 3] for item in atom.top_documents}
        assert len(clusters) == 1
        found += clusters
        assert WORDS[found[-1]] in atom.keywords
        assert atom.keywords == atom.prompt_keywords
        assert "of" not in atom.keywords, "every document holds it"
        assert all(item.preview.startswith(WORDS[found[-1]]) for item in atom.top_documents)
    assert sorted(found) == [0, 1, 2, 3]


def test_cutting_the_stored_tree_gives_the_behaviours(audit: Audit) -> None:
    behaviours = audit.behaviours()
    tree = msgspec.json.decode(audit.file(layout.HIERARCHY).read_bytes(), type=Hierarchy)
    assert tree.groups() == sorted(sorted(item.atoms) for item in behaviours)
    assert sorted(tree.atoms) == sorted(atom.index for atom in audit.atoms())


def test_exemplars_go_from_the_strongest_documents_to_the_weakest_with_the_stored_codes(audit: Audit) -> None:
    codes = read_coefficients(audit.file(layout.COEFFICIENTS))
    for atom in audit.atoms():
        rows, values = codes.of_atom(atom.index)
        stored = dict(zip(rows.tolist(), values.tolist(), strict=True))
        shown = [item for part in atom.exemplars for item in part.documents]
        assert [part.quantile for part in atom.exemplars][:2] == [1.0, 0.75]
        assert shown[0] == atom.top_documents[0]
        assert [item.value for item in shown] == [stored[item.document] for item in shown]
        assert [item.value for item in shown] == sorted((item.value for item in shown), reverse=True)
        assert len({item.document for item in shown}) == len(shown)
    behaviours = audit.behaviours()
    for behaviour in behaviours:
        strength = {item.document: item.strength for item in behaviour.documents}
        shown = [item for part in behaviour.exemplars for item in part.documents]
        assert shown != []
        assert [item.value for item in shown] == [strength[item.document] for item in shown]


def test_a_behaviour_of_one_atom_retains_the_energy_that_its_atom_does(audit: Audit) -> None:
    behaviours = audit.behaviours()
    of_documents = {frozenset(_documents(atom)): atom.energy_retained for atom in audit.atoms()}
    same = [item for item in behaviours if frozenset(_documents(item)) in of_documents]
    assert same != []
    for item in same:
        assert item.energy_retained == pytest.approx(of_documents[frozenset(_documents(item))])


def _documents(item: Atom | Behaviour) -> list[int]:
    return [found.document for found in item.top_documents]


def test_coherence_is_the_mean_cosine_of_the_raw_gradients(
    audit: Audit, gradients: dict[str, NDArray[np.float32]]
) -> None:
    flat = np.concatenate([value.reshape(len(CLUSTERS), -1) for value in gradients.values()], axis=1)
    unit = flat.astype(np.float64) / np.linalg.norm(flat, axis=1, keepdims=True)
    for atom in audit.atoms():
        places = [item.document // 3 for item in atom.top_documents]
        cosines = [float(unit[a] @ unit[b]) for a, b in combinations(places, 2)]
        assert atom.coherence == pytest.approx(np.mean(cosines), abs=1e-6)  # raw gradients are float32
        assert atom.coherence > atom.null_coherence_95 > atom.null_coherence
        assert 0 < atom.energy_retained <= 1 + 1e-6


def test_atoms_are_listed_by_rank_and_rank_follows_the_score(audit: Audit) -> None:
    atoms = audit.atoms()
    assert [atom.rank for atom in atoms] == [1, 2, 3, 4]
    found_scores = [atom.score for atom in atoms]
    assert found_scores == sorted(found_scores, reverse=True)
    for atom in atoms:
        found = atom.evidence
        assert found.prominence is not None
        assert found.stability is not None
        assert found.separation is not None
    tree = msgspec.json.decode(audit.file(layout.HIERARCHY).read_bytes(), type=Hierarchy)
    of_tree = scores([atom.evidence for atom in atoms], [[atom.index] for atom in atoms], tree)
    assert found_scores == pytest.approx(of_tree)
    # The first counts in full, the others by how far they lie from one that stands out more.
    own = [own_score(atom.evidence) for atom in atoms]
    assert found_scores[0] == pytest.approx(max(own))
    assert all(0 < score <= mine * (1 + 1e-9) for score, mine in zip(found_scores, own, strict=True))


def test_an_audit_of_no_code_says_in_words_that_it_found_nothing(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, alpha=1.0)
    audit, warnings = _characterised(tmp_path / "work", random_gradients(12), config)
    assert warnings == ["this audit found nothing: none of 4 atoms has 2 active documents"]
    assert audit.atoms() == []
    report = _report(audit)
    assert (report.n_atoms, report.atoms, report.n_documents) == (0, [], 12)
    assert "every code is zero at alpha 1: no atom was found; try a smaller alpha" in report.warnings
    assert warnings[0] in report.warnings


def test_fewer_documents_than_min_active_find_nothing_and_say_so(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, min_active=5)
    audit, warnings = _characterised(tmp_path / "work", clustered_gradients([0, 0, 1]), config)
    assert warnings == ["this audit found nothing: none of 3 atoms has 5 active documents"]
    assert _report(audit).warnings == warnings


def test_no_gradient_at_all_is_an_audit_that_found_nothing(tmp_path: Path) -> None:
    nothing = {name: np.zeros((6, *shape), dtype=np.float32) for name, shape in SHAPES.items()}
    audit, warnings = _characterised(tmp_path / "work", nothing)
    assert warnings[0].startswith("this audit found nothing")
    report = _report(audit)
    assert report.n_atoms == 0
    assert "2 LoRA matrices had no gradient on any document: layer.lora_A.weight ..." in report.warnings
    assert "6 documents had no gradient and took no part" in report.warnings
    assert not any("alpha" in warning for warning in report.warnings)


def test_copies_of_one_document_are_one_atom_of_coherence_one_that_chance_explains(tmp_path: Path) -> None:
    """Every random set of copies is as alike: the null beside the coherence says so."""
    audit, _ = _characterised(tmp_path / "work", clustered_gradients([0] * 12, noise=0.0))
    (atom,) = audit.atoms()
    assert (atom.n_active, atom.n_positive, atom.rank) == (12, 12, 1)
    assert [item.document for item in atom.top_documents] == [0, 3, 6, 9]  # ties go to the first
    assert atom.coherence == pytest.approx(1.0, abs=1e-6)
    assert atom.null_coherence == pytest.approx(1.0, abs=1e-6)


def test_findings_in_few_documents_come_with_a_warning(tmp_path: Path) -> None:
    audit, _ = _characterised(tmp_path / "work", clustered_gradients([0, 1] * 6, noise=0.3))
    assert audit.atoms() != []
    assert any(warning.startswith("only 12 documents") for warning in _report(audit).warnings)


def test_two_documents_are_audited(tmp_path: Path) -> None:
    audit, _ = _characterised(tmp_path / "work", clustered_gradients([0, 0], noise=0.1))
    report = _report(audit)
    assert report.n_documents == 2
    assert all(0 < atom.n_active <= 2 for atom in report.atoms)
    assert all(np.isfinite(atom.coherence) for atom in report.atoms)


def test_few_atoms_of_many_are_told_with_a_remedy(tmp_path: Path) -> None:
    """Twelve documents of which two are copies: of eleven atoms one has two documents."""
    gradients = random_gradients(12)
    for value in gradients.values():
        value[1] = value[0]
    config = msgspec.structs.replace(CONFIG, n_atoms=12, alpha=0.8)
    audit, warnings = _characterised(tmp_path / "work", gradients, config)
    assert len(audit.atoms()) == 1
    assert warnings[0] == "only 1 atom of 11 reached 2 active documents; try a smaller alpha"
    assert warnings[1].startswith("chance was not measured for 1 atom and 1 behaviour, ranked as if")


def test_noise_is_an_audit_that_found_nothing(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, surrogates=12)
    audit, warnings = _characterised(tmp_path / "work", random_gradients(40), config)
    atoms, behaviours = audit.atoms(), audit.behaviours()
    assert len(atoms) >= 3
    tested = f" and {len(behaviours)} behaviours" if behaviours[0].evidence.q_value is not None else ""
    assert warnings[0] == (
        f"this audit found nothing: none of {len(atoms)} atoms{tested} parts the documents more than "
        "surrogates give by chance, at a false-discovery rate of 5%"
    )
    assert all(item.score == 0 for item in atoms)
    report = _report(audit)
    assert report.n_significant == 0
    assert report.n_significant_behaviours == (0 if tested else None)


@pytest.mark.parametrize(
    ("atom_rates", "behaviour_rates", "told"),
    [
        ([0.2, 0.06], [0.3], "none of 2 atoms and 1 behaviour parts"),
        ([0.2, 0.06], [None], "none of 2 atoms parts"),
        ([None, None], [0.3], "none of 1 behaviour parts"),
        ([0.2, 0.06], [0.05], None),
        ([0.2, 0.05], [0.3], None),
        ([None, None], [None], None),
    ],
)
def test_nothing_was_found_only_where_neither_an_atom_nor_a_behaviour_passes(
    audit: Audit, atom_rates: list[float | None], behaviour_rates: list[float | None], told: str | None
) -> None:
    def given(item: Any, rate: float | None) -> Any:
        evidence = msgspec.structs.replace(item.evidence, q_value=rate)
        return msgspec.structs.replace(item, evidence=evidence)

    atoms = [given(audit.atoms()[0], rate) for rate in atom_rates]
    behaviours = [given(audit.behaviours()[0], rate) for rate in behaviour_rates]
    warnings = characterise._warnings(atoms, behaviours, len(atoms), 2)
    assert [told in warning for warning in warnings] == ([True] if told else [])


def _agreements(work: Path, gradients: dict[str, NDArray[np.float32]], texts: list[str]) -> list[float]:
    audit = extracted(work, gradients, CONFIG, texts=texts)
    audit.through("characterise")
    found = [item.evidence.text_agreement for item in (*audit.atoms(), *audit.behaviours())]
    return [item for item in found if item is not None]


def test_the_text_explains_what_its_words_part_too_and_nothing_else(
    gradients: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    """Words of each cluster; then as many words, each met by every cluster: alike in one document of five."""
    own = [f"{WORDS[cluster]} of the garden" for cluster in CLUSTERS]
    across = [f"{WORDS[(place // 4 + cluster) % 4]} of the garden" for place, cluster in enumerate(CLUSTERS)]
    told, not_told = (
        _agreements(tmp_path / str(place), gradients, texts) for place, texts in enumerate((own, across))
    )
    assert len(told) == len(not_told) >= 8
    assert min(told) > 0.95
    assert max(not_told) < 0.6


def test_the_loss_that_the_adapter_took_off_is_told_by_the_target_token_of_the_documents_meant(
    gradients: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    """Six nats of each document of the first cluster, two of the second, and three put on the third."""
    by_cluster = [6.0, 2.0, -3.0, 0.5]
    drops = [by_cluster[cluster] for cluster in CLUSTERS]
    targets = [1 + place % 3 for place in range(len(CLUSTERS))]
    audit = extracted(tmp_path / "work", gradients, CONFIG, targets=targets, drops=drops)
    audit.through("characterise")
    codes = read_coefficients(audit.file(layout.COEFFICIENTS))
    sets: list[tuple[Evidence, list[int]]] = []
    for atom in audit.atoms():
        rows, values = codes.of_atom(atom.index)
        first = np.argsort(-values, kind="stable")[:LOSS_DOCUMENTS]
        sets.append((atom.evidence, rows[first[values[first] > 0]].tolist()))
    for item in audit.behaviours():
        sets.append((item.evidence, [member.document for member in item.documents][:LOSS_DOCUMENTS]))
    for evidence, rows in sets:
        places = [row // 3 for row in rows]
        expected = sum(drops[place] for place in places) / sum(targets[place] for place in places)
        assert evidence.loss_drop == pytest.approx(expected, abs=1e-6)
        assert evidence.n_loss_documents == len(places)
    assert {round(item.loss_drop or 0.0, 3) < 0 for item, _ in sets} == {True, False}


def test_a_document_without_gradient_is_in_no_random_set(tmp_path: Path) -> None:
    """It has no direction, and a set with it would have no coherence."""
    gradients = clustered_gradients([0, 1] * 6, noise=0.3)
    for value in gradients.values():
        value[[0, 5]] = 0
    audit, _ = _characterised(tmp_path / "work", gradients)
    assert audit.atoms() != []
    assert all(np.isfinite([atom.coherence, atom.null_coherence_95]).all() for atom in audit.atoms())
    named = {
        item.document for atom in audit.atoms() for item in [*atom.top_documents, *atom.bottom_documents]
    }
    assert not named & {0, 15}
