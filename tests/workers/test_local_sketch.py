"""`gradients: sketch`: refits find what they would with all gradients, their vectors as near as told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import atomscope
from atomscope.bundle import Bundle, layout
from atomscope.cli import main
from atomscope.errors import InvalidInput
from atomscope.types.atoms import Atom
from atomscope_workers.local import InProcess
from atomscope_workers.stages import basis, extract, vectors
from atomscope_workers.stages.arrays import load_sketch
from atomscope_workers.stages.sketch_columns import raw_columns
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import (
    SMALL,
    Recorder,
    check_that_only_codes_compare,
    contents,
    partial,
    refit,
    request,
    run,
)

DOCUMENTS = 14
SPACES: dict[str, dict[str, Any]] = {
    "gram": {},
    "directions": {"exact_documents": 4, "sketch_columns": 512, "directions": 8},
    "components": {"preconditioner": "ekfac"},
}
OTHER: dict[str, Any] = {"n_atoms": 6, "alpha": 0.2}
SEED = {"gram": 3, "components": 3, "directions": SMALL.seed}
"""Of refits: directions are those of the first audit's seed, which another one would not find."""
COHERENCE_ERROR = 0.02
"""Most that 4,096 columns put the mean cosine of a few documents off by: one over their root is 0.016."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sketched")
    write_corpus(made / "train.jsonl", DOCUMENTS)
    return made


@pytest.fixture(scope="module")
def audits(folder: Path, tiny_llama: Path, plain_adapter: Path) -> dict[tuple[str, str], Path]:
    """One audit a space and way to keep gradients."""
    return {
        (space, kept): run(
            request(
                tiny_llama,
                plain_adapter,
                folder / "train.jsonl",
                folder / f"{space}-{kept}",
                msgspec.structs.replace(SMALL, gradients=kept, **settings),
            )
        )
        for space, settings in SPACES.items()
        for kept in ("float32", "sketch")
    }


def forbid_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a gradient was extracted")

    monkeypatch.setattr(extract, "gradient_pass", forbidden)


def but_for_vectors(atom: Atom) -> Atom:
    return msgspec.structs.replace(
        atom, vector_norm=0.0, vector_cosine=None, coherence=0.0, null_coherence=0.0, null_coherence_95=0.0
    )


def cosine(left: Bundle, right: Bundle, atom: int) -> float:
    """Between the vectors of one atom in two bundles; half-whitened, it is that of the whitened space."""
    one, other = (
        np.concatenate([part.ravel() for part in found.vector(atom).values()]) for found in (left, right)
    )
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("space", SPACES)
def test_the_audit_itself_is_that_which_keeps_everything(
    audits: dict[tuple[str, str], Path], space: str
) -> None:
    files, others = contents(audits[space, "sketch"]), contents(audits[space, "float32"])
    own = {layout.MANIFEST, layout.SPEC, layout.REPORT}
    assert {path.partition("/")[0] for path in others.keys() - files.keys()} == {"gradients"}
    sums = {layout.BASIS, layout.BASIS_WEIGHTS} if space != "components" else set[str]()
    assert files.keys() - others.keys() == {layout.gradient_sketch(0), layout.gradient_sketch(1)} | sums
    assert {path for path in files.keys() & others.keys() if files[path] != others[path]} <= own
    bundle = atomscope.open(audits[space, "sketch"])
    bundle.verify()
    assert bundle.gradients_kept == "sketch"
    told = bundle.report.details["gradients"]
    stored = load_sketch([audits[space, "sketch"] / layout.gradient_sketch(0)])
    assert (told["kept"], told["columns"]) == ("sketch", stored.shape[1])
    assert "attribution with `exact`" in told["disables"]
    assert all(atom.vector_cosine is None for atom in bundle.report.atoms)


@pytest.mark.parametrize("space", SPACES)
def test_a_refit_finds_what_it_would_with_every_gradient(
    audits: dict[tuple[str, str], Path], space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_passes(monkeypatch)
    exact, child = (
        atomscope.open(refit(audits[space, kept], tmp_path / kept, seed=SEED[space], **OTHER))
        for kept in ("float32", "sketch")
    )
    child.verify()
    assert child.gradients_kept == "sketch"
    assert list(map(but_for_vectors, child.report.atoms)) == list(map(but_for_vectors, exact.report.atoms))
    assert child.report.details.get("directions") == atomscope.open(
        audits[space, "sketch"]
    ).report.details.get("directions")
    error = COHERENCE_ERROR * (4096 / raw_columns(child.spec.config)) ** 0.5
    for atom, other in zip(child.report.atoms, exact.report.atoms, strict=True):
        assert atom.coherence == pytest.approx(other.coherence, abs=error)
        assert atom.null_coherence == pytest.approx(other.null_coherence, abs=error)
        near = cosine(child, exact, atom.index)
        if space == "components":
            assert atom.vector_cosine is None
            assert near == pytest.approx(1, abs=1e-6)
            continue
        assert atom.vector_cosine is not None
        assert 0 < atom.vector_cosine < 1 + 1e-6
        if space == "gram":
            assert near == pytest.approx(atom.vector_cosine, abs=1e-4)
            assert atom.vector_norm == pytest.approx(1, abs=1e-3)
        else:  # known along the directions alone
            assert near == pytest.approx(atom.vector_cosine, abs=0.1)


def test_the_vectors_of_a_refit_do_not_depend_on_how_many_are_made_at_once(
    audits: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = atomscope.open(refit(audits["gram", "sketch"], tmp_path / "together", **OTHER))
    for name in ("HELD_BYTES", "LEAST_HELD", "LEAST_ATOMS"):
        monkeypatch.setattr(vectors, name, 1)
    apart = atomscope.open(refit(audits["gram", "sketch"], tmp_path / "apart", **OTHER))
    indices = [atom.index for atom in together.report.atoms]
    assert len(indices) > 2
    assert [atom.index for atom in apart.report.atoms] == indices
    for index in indices:
        assert cosine(apart, together, index) == pytest.approx(1, abs=1e-6)


def test_refits_of_refits_and_other_powers_of_the_vectors_are_made_of_the_same_sketch(
    audits: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    middle = refit(audits["gram", "sketch"], tmp_path / "middle", seed=5)
    again, once = (
        refit(source, tmp_path / name, vector_power="+1/2", seed=3, **OTHER)
        for source, name in ((middle, "again"), (audits["gram", "sketch"], "once"))
    )
    files, others = contents(again), contents(once)
    own = {layout.MANIFEST, layout.SPEC, layout.REPORT}
    assert files.keys() == others.keys()
    assert {path for path in files if files[path] != others[path]} <= own
    shutil.rmtree(middle)
    atomscope.open(again).verify()
    exact = refit(audits["gram", "float32"], tmp_path / "exact", vector_power="+1/2", seed=3, **OTHER)
    for atom in atomscope.open(again).report.atoms:
        # Fewer documents than directions: nothing is lost but what float16 rounds.
        assert atom.vector_cosine == pytest.approx(1, abs=1e-4)
        assert cosine(atomscope.open(again), atomscope.open(exact), atom.index) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("space", "error"), [("gram", 1e-3), ("directions", 0.1)])
def test_of_fewer_directions_the_cosine_that_is_told_is_that_of_the_vectors(
    audits: dict[tuple[str, str], Path],
    folder: Path,
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    space: str,
    error: float,
) -> None:
    monkeypatch.setattr(basis, "BASIS_SUMS", 4)
    monkeypatch.setattr(basis, "HELD_BYTES", 1)
    monkeypatch.setattr(basis, "LEAST_HELD", 1)  # one direction a pass
    config = msgspec.structs.replace(SMALL, gradients="sketch", **SPACES[space])
    few = run(request(tiny_llama, plain_adapter, folder / "train.jsonl", tmp_path / "few", config))
    child = atomscope.open(refit(few, tmp_path / "child", **OTHER))
    exact = atomscope.open(refit(audits[space, "float32"], tmp_path / "exact", **OTHER))
    told = {atom.index: atom.vector_cosine for atom in child.report.atoms}
    assert all(value is not None and 0 < value < 1 - 1e-3 for value in told.values())
    for atom in child.atoms:
        assert atom.vector_cosine == told[atom.index]
        assert cosine(child, exact, atom.index) == pytest.approx(told[atom.index], abs=error)
        assert atom.vector_norm == pytest.approx(1, abs=1e-2)
    first = child.atoms[0]
    assert main(["atoms", "show", str(tmp_path / "child"), str(first.index)]) == 0
    assert f"{first.vector_cosine:.3f} to the exact one" in capsys.readouterr().out
    assert main(["atoms", "show", str(tmp_path / "exact"), str(exact.atoms[0].index)]) == 0
    assert "vector cosine" not in capsys.readouterr().out


def test_an_audit_that_found_nothing_is_refitted_all_the_same(
    folder: Path, tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    config = msgspec.structs.replace(SMALL, gradients="sketch", alpha=100.0)
    empty = run(request(tiny_llama, plain_adapter, folder / "train.jsonl", tmp_path / "empty", config))
    assert atomscope.open(empty).report.atoms == []
    assert atomscope.open(refit(empty, tmp_path / "child", alpha=0.2)).report.atoms
    assert atomscope.open(refit(empty, tmp_path / "again")).report.atoms == []


def test_what_needs_more_than_a_sketch_is_refused_by_name(
    audits: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    kept = audits["gram", "sketch"]
    for name, value in {
        "preconditioner": "kfac",
        "damping": 0.1,
        "exact_documents": 4,
        "sketch_columns": 64,
        "directions": 9,
        "gradients": "float32",
    }.items():
        with pytest.raises(InvalidInput, match=f"`{name}`") as refused:
            refit(kept, tmp_path / "child", **{name: value})
        assert refused.value.code == "needs_extraction"
    assert list(tmp_path.iterdir()) == []
    check_that_only_codes_compare(atomscope.open(kept))


@pytest.mark.parametrize("missing", [layout.gradient_sketch(1), layout.BASIS, layout.BASIS_WEIGHTS])
def test_a_sketch_that_was_left_out_of_a_copy_is_missed(
    audits: dict[tuple[str, str], Path], tmp_path: Path, missing: str
) -> None:
    copy = shutil.copytree(audits["gram", "sketch"], tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(InvalidInput) as caught:
        refit(copy, tmp_path / "child", seed=1)
    assert caught.value.code == "gradients_missing"


def test_a_bundle_of_when_many_documents_were_compared_by_sketches_alone_is_refused_as_old(
    audits: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(audits["directions", "sketch"], tmp_path / "copy")
    (copy / layout.DIRECTIONS).rename(copy / layout.projected_shard(0))
    manifest = (copy / layout.MANIFEST).read_text()
    (copy / layout.MANIFEST).write_text(manifest.replace(layout.DIRECTIONS, layout.projected_shard(0)))
    with pytest.raises(InvalidInput, match="compared by sketches") as caught:
        refit(copy, tmp_path / "child", alpha=0.2)
    assert caught.value.code == "old_bundle"


def test_an_audit_under_way_is_to_end_first(
    folder: Path, tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    config = msgspec.structs.replace(SMALL, gradients="sketch")
    asked = request(tiny_llama, plain_adapter, folder / "train.jsonl", tmp_path / "stopped", config)
    with pytest.raises(KeyboardInterrupt):
        run(asked, Recorder(stop=lambda told: told.stage == "dictionary"))
    with pytest.raises(InvalidInput, match="let it end"):
        refit(partial(tmp_path / "stopped"), tmp_path / "child", seed=1)


def test_the_bytes_of_a_sketch_are_told_in_advance(
    audits: dict[tuple[str, str], Path], folder: Path, tmp_path: Path
) -> None:
    spec = atomscope.open(audits["gram", "sketch"]).spec
    asked = request(
        Path(spec.base_model.location),
        Path(spec.adapter.location),
        folder / "train.jsonl",
        tmp_path / "estimated",
        spec.config,
    )
    told = InProcess().estimate(asked).details
    held = sum(path.stat().st_size for path in (audits["gram", "sketch"] / "sketches").iterdir())
    assert told["gradients"] == "sketch"
    assert told["gradient_bytes"] == told["gradient_bytes_by_setting"]["sketch"]
    assert told["gradient_bytes"] == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("lost", [layout.CURVATURE, layout.GRAM, layout.REPORT])
def test_a_bundle_of_a_sketch_that_lacks_a_part_is_refused_before_any_work(
    audits: dict[tuple[str, str], Path], tmp_path: Path, lost: str
) -> None:
    copy = shutil.copytree(audits["gram", "sketch"], tmp_path / "copy")
    (copy / lost).unlink()
    with pytest.raises(InvalidInput, match=f"{lost} is not there"):
        refit(copy, tmp_path / "child", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_settings_that_do_not_matter_are_not_refused(
    audits: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    refit(audits["gram", "sketch"], tmp_path / "child", components=3)
    told = atomscope.open(audits["components", "sketch"]).report.details["gradients"]["disables"]
    assert "exact vectors in refits" not in told
    assert "`exact_documents`" not in told[0]
