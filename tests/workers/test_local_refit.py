"""Refits on one machine: equal to whole audits, without an extraction, and refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import atomscope
from atomscope.bundle import layout
from atomscope.cli import main
from atomscope.cli.registry import LocalRefit
from atomscope.errors import BundleError, InvalidInput
from atomscope.types.attribution import AttributionQuery
from atomscope_workers.attribution import attribute
from atomscope_workers.datasets.templates import NAMED_TEMPLATES
from atomscope_workers.datasets.tokenize import RowTokenizer
from atomscope_workers.local import refit_local
from atomscope_workers.models.base import check_base, load_tokenizer
from atomscope_workers.models.load import LoraModel
from atomscope_workers.opened_audit import OpenedAudit
from atomscope_workers.pipeline import plan
from atomscope_workers.pipeline.batches import Batch
from atomscope_workers.query import audited_rows
from atomscope_workers.stages import along as along_stage
from atomscope_workers.stages import evidence, extract, planning
from atomscope_workers.stages import refit as refit_stage
from atomscope_workers.stages.context import StageContext
from atomscope_workers.stages.planned_units import OF_DIRECTIONS
from tests.fixtures.corpus import write_corpus
from tests.workers.datasets import conversing
from tests.workers.local_runs import SMALL, Recorder, contents, partial, refit, request, run

CONFIG = SMALL
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
DOCUMENTS = 14
OWN = {layout.MANIFEST, layout.SPEC, layout.REPORT}
"""Files that name the audit."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refits")
    write_corpus(folder / "train.jsonl", DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def parent(site: Path, tiny_llama: Path, plain_adapter: Path) -> Path:
    return run(request(tiny_llama, plain_adapter, site / "train.jsonl", site / "parent", CONFIG))


@pytest.fixture(scope="module")
def templated(
    site: Path, tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An audit by the template that lies beside its adapter."""
    folder = tmp_path_factory.mktemp("templated")
    adapter = shutil.copytree(plain_adapter, folder / "adapter")
    (adapter / "chat_template.jinja").write_text(NAMED_TEMPLATES["zephyr"])
    config = msgspec.structs.replace(CONFIG, chat_template="adapter", fits=1, surrogates=0)
    return run(request(tiny_llama, adapter, site / "train.jsonl", folder / "whole", config))


@pytest.fixture
def no_extraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "gradient_pass", _forbidden)


def _forbidden(*_: object) -> None:
    raise AssertionError("a gradient was extracted")


def found(bundle: Path) -> dict[str, bytes]:
    """What an audit found, whatever its name and whoever extracted."""
    files = contents(bundle)
    report = msgspec.json.decode(files[layout.REPORT])
    del report["audit_id"], report["details"]["documents_extracted"]
    kept = {path: data for path, data in files.items() if path not in OWN}
    return kept | {"report": msgspec.json.encode(report)}


@pytest.mark.usefixtures("no_extraction")
def test_a_refit_passes_over_what_its_parent_holds(parent: Path, tmp_path: Path) -> None:
    stages = dict[str, None]()
    asked = LocalRefit(source=str(parent), out=tmp_path / "refit", settings={"seed": 3})
    refit_local(asked, lambda stage, progress: stages.setdefault(stage))
    assert {"lambdas", *OF_DIRECTIONS}.isdisjoint(stages)
    assert {"eigenbases", "curvature", "project", "combine", "vectors"} <= stages.keys()


def test_a_refit_that_cannot_fit_is_refused_before_it_fits(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 8 * DOCUMENTS**2
    monkeypatch.setattr(planning, "free_bytes", lambda device: needed)
    assert refit(parent, tmp_path / "one", fits=1, surrogates=0).is_dir()
    monkeypatch.setattr(planning, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InvalidInput, match=r"`dictionary` needs at least .* free on cpu: inner") as caught:
        refit(parent, tmp_path / "two", fits=1, surrogates=0)
    assert caught.value.code == "not_enough_memory"
    assert not (tmp_path / "two").exists()


def test_a_refit_that_makes_inner_products_anew_has_room_for_that(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 12 * DOCUMENTS**2
    monkeypatch.setattr(planning, "free_bytes", lambda device: needed)
    assert refit(parent, tmp_path / "one", fits=1, surrogates=0, damping=0.5).is_dir()
    monkeypatch.setattr(planning, "free_bytes", lambda device: needed - 1)
    assert refit(parent, tmp_path / "two", fits=1, surrogates=0).is_dir()
    with pytest.raises(InvalidInput, match="`project` needs at least"):
        refit(parent, tmp_path / "three", fits=1, surrogates=0, damping=0.5)


def test_a_refit_for_which_there_is_no_room_beside_a_kept_model_has_it_let_go(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [1]
    monkeypatch.setattr(planning, "free_bytes", lambda device: 0 if kept else 2**40)
    monkeypatch.setattr(refit_stage, "release_models", kept.clear)
    assert refit(parent, tmp_path / "one", fits=1, surrogates=0).is_dir()
    assert kept == []


@pytest.mark.parametrize(
    "settings",
    [
        {"n_atoms": 6, "alpha": 0.2, "seed": 3},
        {"preconditioner": "ekfac"},
        {"preconditioner": "kfac", "damping": 0.1},
        {"exact_documents": 4, "sketch_columns": 64, "directions": 6},
    ],
    ids=["atoms, alpha and seed", "components", "kfac", "directions"],
)
def test_a_refit_is_to_the_byte_a_whole_audit_with_its_settings(
    site: Path,
    parent: Path,
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    config = msgspec.structs.replace(CONFIG, **settings)
    whole = run(request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "whole", config))
    with monkeypatch.context() as patch:
        patch.setattr(extract, "gradient_pass", _forbidden)
        child = refit(parent, tmp_path / "child", **settings)
    assert found(child) == found(whole)
    bundle, other = atomscope.open(child), atomscope.open(parent)
    bundle.verify()
    assert bundle.manifest.parent == other.manifest.audit_id != bundle.manifest.audit_id
    assert bundle.spec.config == config
    other.verify()


def base_losses(bundle: Path) -> dict[int, float]:
    return {
        row.document: row.base_loss
        for row in atomscope.open(bundle).documents.values()
        if row.base_loss is not None
    }


def test_losses_under_the_base_are_taken_over_where_the_parent_measured_them(
    site: Path, tiny_llama: Path, plain_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is one document of a shard, so that the evidence has to measure nearly all."""
    monkeypatch.setattr(plan, "LOSS_SAMPLE", 1)
    config = msgspec.structs.replace(CONFIG, n_atoms=2)
    parent = run(request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "parent", config))
    measured: list[int] = []
    losses = evidence.document_losses

    def counted(lora: LoraModel, batch: Batch) -> torch.Tensor:
        measured.append(len(batch.input_ids))
        return losses(lora, batch)

    monkeypatch.setattr(evidence, "document_losses", counted)
    known = base_losses(parent)
    assert 2 < len(known) < DOCUMENTS
    again = refit(parent, tmp_path / "again")
    assert measured == []
    assert found(again) == found(parent)
    child = refit(parent, tmp_path / "child", n_atoms=8)
    own = base_losses(child)
    assert sum(measured) == len(own.keys() - known.keys())
    finer = msgspec.structs.replace(config, n_atoms=8)
    whole = run(request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "whole", finer))
    others = base_losses(whole)
    common = own.keys() & others.keys()
    assert common > known.keys()
    # Measured in other company, padded otherwise.
    for row in common:
        assert own[row] == pytest.approx(others[row], rel=1e-5)
    for behaviour in atomscope.open(whole).behaviours:
        assert behaviour.evidence.n_loss_documents == min(behaviour.n_documents, evidence.LOSS_DOCUMENTS)
    for atom in (*atomscope.open(whole).atoms, *atomscope.open(child).atoms):
        first = min(atom.n_positive, evidence.LOSS_DOCUMENTS)
        assert first / 2 <= atom.evidence.n_loss_documents <= first
    report = atomscope.open(child).report
    told = [item.evidence.n_loss_documents for item in (*report.atoms, *report.behaviours)]
    assert sum(measured) <= sum(min(count, (evidence.LOSS_DOCUMENTS + 1) // 2) for count in told)
    assert report.loss_base == atomscope.open(whole).report.loss_base
    measured.clear()
    monkeypatch.setattr(evidence, "ENOUGH_MEASURED", 0.0)
    unmeasured = refit(parent, tmp_path / "unmeasured", n_atoms=8)
    assert (measured, base_losses(unmeasured)) == ([], known)


def test_a_refit_keeps_the_template_beside_the_adapter(
    templated: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    again = refit(refit(templated, tmp_path / "once", n_atoms=3), tmp_path / "twice", seed=1)
    assert contents(again)[layout.ADAPTER_TEMPLATE] == contents(templated)[layout.ADAPTER_TEMPLATE]
    opened = OpenedAudit(atomscope.open(again), tiny_llama, lambda progress: None)
    tokenizer = load_tokenizer(tiny_llama)
    asked = audited_rows(opened, tokenizer, check_base(tiny_llama).config)
    named = RowTokenizer(tokenizer, 256, "zephyr")
    talk = conversing.row(messages=TALK)
    assert asked(talk).input_ids.tolist() == named(talk).input_ids.tolist()
    query = attribute(opened, AttributionQuery(prompt="hi", completion="yes"))
    assert query.n_tokens == len(named(talk).input_ids)


@pytest.mark.usefixtures("no_extraction")
def test_a_refit_of_a_refit_goes_on_from_its_curvature(parent: Path, tmp_path: Path) -> None:
    middle = refit(parent, tmp_path / "middle", preconditioner="kfac")
    again = refit(middle, tmp_path / "again", preconditioner=CONFIG.preconditioner)
    assert found(again) == found(parent)
    shutil.rmtree(middle)
    atomscope.open(again).verify()


def test_the_work_of_an_interrupted_audit_can_be_refitted(
    site: Path, parent: Path, tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "stopped", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run(asked, Recorder(stop=lambda told: told.stage == "extract"))
    with pytest.raises(InvalidInput) as caught:
        refit(tmp_path / "stopped", tmp_path / "early")
    assert caught.value.code == "not_extracted"
    assert "0 shards of 2 extracted" in caught.value.detail
    with pytest.raises(KeyboardInterrupt):
        run(asked, Recorder(stop=lambda told: told.stage == "curvature"))
    work = partial(tmp_path / "stopped")
    child = refit(work, tmp_path / "child")
    assert found(child) == found(parent)
    weights = next(work.rglob(layout.ADAPTER_WEIGHTS))
    with_another_byte(weights)
    with pytest.raises(InvalidInput) as caught:
        refit(work, tmp_path / "other", seed=1)
    assert caught.value.code == "bundle_damaged"
    with_another_byte(weights)
    facts = next(work.rglob("gradients/0001.json"))
    facts.rename(tmp_path / "facts")
    with pytest.raises(InvalidInput, match=r"0001\.json is missing from") as caught:
        refit(work, tmp_path / "other", seed=1)
    assert caught.value.code == "bundle_damaged"
    (tmp_path / "facts").rename(facts)
    assert found(run(asked)) == found(parent)


ALONG: dict[str, Any] = {"exact_documents": 4, "sketch_columns": 64, "directions": 6}


@pytest.fixture(scope="module")
def along(site: Path, tiny_llama: Path, plain_adapter: Path) -> Path:
    """An audit whose documents have coordinates along directions."""
    config = msgspec.structs.replace(CONFIG, **ALONG)
    return run(request(tiny_llama, plain_adapter, site / "train.jsonl", site / "along", config))


@pytest.mark.parametrize(
    ("settings", "anew"),
    [
        ({"n_atoms": 6, "alpha": 0.2}, False),
        ({"seed": 3}, True),
        ({"directions": 5}, True),
        ({"sketch_columns": 80}, True),
        ({"damping": 0.1}, True),
    ],
    ids=["the fit", "seed", "directions", "columns", "damping"],
)
def test_coordinates_are_taken_over_where_the_refit_would_make_the_same(
    site: Path,
    along: Path,
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    anew: bool,
) -> None:
    config = msgspec.structs.replace(CONFIG, **{**ALONG, **settings})
    whole = run(request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "whole", config))
    made: list[str] = []
    monkeypatch.setattr(along_stage, "_products", _noted(along_stage._products, made))
    child = refit(along, tmp_path / "child", **settings)
    assert bool(made) == anew
    assert found(child) == found(whole)
    assert (
        atomscope.open(child).report.details["directions"]
        == (atomscope.open(whole).report.details["directions"])
    )


def _noted(function: Callable[..., None], made: list[str]) -> Callable[..., None]:
    def noted(ctx: StageContext, *rest: object) -> None:
        made.append(ctx.stage)
        function(ctx, *rest)

    return noted


def test_coordinates_of_an_interrupted_audit_are_taken_over_without_its_report(
    site: Path,
    along: Path,
    tiny_llama: Path,
    plain_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = msgspec.structs.replace(CONFIG, **ALONG)
    asked = request(tiny_llama, plain_adapter, site / "train.jsonl", tmp_path / "stopped", config)
    with pytest.raises(KeyboardInterrupt):
        run(asked, Recorder(stop=lambda told: told.stage == "evidence"))
    made: list[str] = []
    monkeypatch.setattr(along_stage, "_products", _noted(along_stage._products, made))
    child = refit(partial(tmp_path / "stopped"), tmp_path / "child")
    assert (found(child), made) == (found(along), [])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 64},
        {"chat_template": "chatml"},
        {"token_budget": 64},
        {"dtype": "bfloat16"},
        {"gradients": "float16"},
        {"gradients": "none"},
    ],
)
def test_a_setting_that_needs_an_extraction_is_refused_by_name(
    parent: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        refit(parent, tmp_path / "child", **settings)
    assert caught.value.code == "needs_extraction"
    assert f"`{next(iter(settings))}`" in caught.value.detail
    assert list(tmp_path.iterdir()) == []


def test_a_preset_keeps_what_was_extracted(parent: Path, tmp_path: Path) -> None:
    child = refit(parent, tmp_path / "child", preset="paper", n_atoms=4, min_active=2, fits=1, surrogates=0)
    config = atomscope.open(child).spec.config
    assert (config.solver, config.n_atoms, config.max_length) == ("sklearn", 4, CONFIG.max_length)
    assert config.token_budget == CONFIG.token_budget


def test_a_wrong_setting_is_refused(parent: Path, tmp_path: Path) -> None:
    for settings in ({"n_atoms": 0}, {"atoms": 3}, {"solver": "sklearn", "alpha": "auto"}):
        with pytest.raises(InvalidInput) as caught:
            refit(parent, tmp_path / "child", **settings)
        assert caught.value.code == "bad_setting"


def test_a_file_of_settings_that_are_none_is_named(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out = tmp_path / "more.json", tmp_path / "child"
    settings.write_bytes(b'\xef\xbb\xbf{"n_atom": 9}')
    status = main(["audit", "refit", str(parent), "--out", str(out), "--config", str(settings)])
    assert status == 2
    assert f"{settings}: Object contains unknown field `n_atom`" in capsys.readouterr().err
    assert not out.exists()


def without(*paths: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        for path in paths:
            (bundle / path).unlink()

    return change


def with_version(bundle: Path) -> None:
    manifest = json.loads((bundle / layout.MANIFEST).read_text())
    (bundle / layout.MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))


def with_another_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (without(layout.gradient_shard(1)), "gradients_missing"),
        (without(layout.TOKENS), "old_bundle"),
        (without(layout.ADAPTER_CONFIG), "old_bundle"),
    ],
    ids=["expired", "before there were refits", "no adapter"],
)
def test_a_bundle_that_lacks_something_is_refused(
    parent: Path, tmp_path: Path, change: Callable[[Path], None], code: str
) -> None:
    copy = shutil.copytree(parent, tmp_path / "copy")
    change(copy)
    with pytest.raises(InvalidInput) as caught:
        refit(copy, tmp_path / "child", seed=1)
    assert caught.value.code == code
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize(
    "path",
    [layout.ADAPTER_WEIGHTS, layout.TOKENS, layout.gradient_shard(0), layout.CURVATURE, layout.DOCUMENTS],
)
def test_damage_that_leaves_the_size_is_not_taken_over_and_the_refit_goes_on_once_it_is_mended(
    parent: Path, tmp_path: Path, path: str
) -> None:
    copy = shutil.copytree(parent, tmp_path / "copy")
    with_another_byte(copy / path)
    with pytest.raises(InvalidInput, match=f"{path} is damaged: its SHA-256") as caught:
        refit(copy, tmp_path / "child", seed=1)
    assert caught.value.code == "bundle_damaged"
    assert not (tmp_path / "child").exists()
    with_another_byte(copy / path)
    assert atomscope.open(refit(copy, tmp_path / "child", seed=1)).verify() == []


def test_what_is_no_bundle_of_a_known_format_is_refused(parent: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parent, tmp_path / "copy")
    with_version(copy)
    for source, told in ((copy, "format 99"), (tmp_path / "nothing", "nothing"), (tmp_path, "manifest")):
        with pytest.raises(BundleError, match=told):
            refit(source, tmp_path / "child")


def test_the_base_model_must_be_the_audited_one(
    parent: Path, tiny_llama: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    child = refit(parent, tmp_path / "child", base_model=moved, seed=2)
    assert atomscope.open(child).spec.base_model.location == str(moved)
    for given, code in ((tmp_path / "none", "bad_path"), (plain_adapter, "input_changed")):
        with pytest.raises(InvalidInput) as caught:
            refit(parent, tmp_path / "other", base_model=given)
        assert caught.value.code == code


def test_out_that_holds_another_bundle_is_refused_and_the_same_refit_returned(
    parent: Path, tmp_path: Path
) -> None:
    child = refit(parent, tmp_path / "child", seed=5)
    before = contents(child)
    assert refit(parent, tmp_path / "child", seed=5) == child
    for out in (child, parent):
        with pytest.raises(InvalidInput) as caught:
            refit(parent, out, seed=6)
        assert caught.value.code == "bad_path"
    assert contents(child) == before


def test_the_command_line_refits_a_bundle_and_exits_as_every_command_does(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["audit", "refit", str(parent), "--out", str(tmp_path / "child"), "--json"]
    assert main([*line, "--n-atoms", "6", "--alpha", "0.2", "--seed", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    bundle = atomscope.open(told["bundle"])
    assert [atom["index"] for atom in told["atoms"]] == [atom.index for atom in bundle.atoms]
    assert (bundle.spec.config.n_atoms, bundle.report.details["documents_extracted"]) == (6, 0)
    (tmp_path / "more.toml").write_text("max_length = 64\n")
    assert main([*line[:4], str(tmp_path / "no"), "--json", "--config", str(tmp_path / "more.toml")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "needs_extraction"
