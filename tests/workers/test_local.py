"""The local driver: resumed without loss, repeated to the bit, counted to the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree

import msgspec
import pytest

import atomscope
from atomscope.cli.registry import LocalRun
from atomscope.types.work import FAN_OUT, STAGES, Stage
from atomscope_workers.stages.planned_units import OF_DIRECTIONS
from tests.fixtures.corpus import write_corpus
from tests.workers.local_runs import SMALL, Recorder, contents, finished, partial, request, run

RUN = [stage for stage in STAGES if stage not in OF_DIRECTIONS]
"""Stages of an audit of documents few enough to be compared exactly."""
DOCUMENTS, SHARDS = 30, 4
"""Of 8 documents a shard, the last one shorter."""

Asked = Callable[[str], LocalRun]


@pytest.fixture(scope="module")
def asked(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The same audit under any name of its output."""
    folder = tmp_path_factory.mktemp("local")
    dataset = write_corpus(folder / "train.jsonl", DOCUMENTS)
    return lambda name: request(tiny_llama, plain_adapter, dataset, folder / name)


@pytest.fixture(scope="module")
def whole(asked: Asked) -> tuple[Path, Recorder]:
    """A run from beginning to end, and what it told of its progress."""
    recorder = Recorder()
    return run(asked("whole"), recorder), recorder


def _stopping_at(stage: Stage, count: int) -> Recorder:
    """Interrupts at a stage's word of that number, counted over all its units."""
    recorder = Recorder(lambda told: told.stage == stage and len(recorder.of(stage)) == count)
    return recorder


def test_two_runs_give_identical_bits(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    first, second = contents(whole[0]), contents(run(asked("again")))
    assert {"gradients/0003.safetensors", "atoms/atoms.json", "report.json"} <= first.keys()
    assert first == second
    assert not partial(whole[0]).exists()


def test_another_seed_gives_other_bits(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    """So that equal bits above are no accident of what is compared."""
    other = msgspec.structs.replace(SMALL, seed=1)
    found = contents(run(msgspec.structs.replace(asked("seed"), config=other)))
    expected = contents(whole[0])
    differing = {path for path in expected if found.get(path) != expected[path]}
    assert "atoms/dictionary.safetensors" in differing
    assert "gradients/0000.safetensors" not in differing


def test_an_interrupted_extraction_resumes_at_the_first_missing_shard(
    asked: Asked, whole: tuple[Path, Recorder]
) -> None:
    """Interrupted after the first micro-batch of the third shard: two shards stay, and are not run again."""
    ask = asked("interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "extract" and told.done > 16))
    assert finished(ask.out) == ["extract-0000", "extract-0001", "validate-0000"]
    assert not ask.out.exists()
    assert [path.name for path in partial(ask.out).glob("unit-*")] == []
    shards = [partial(ask.out) / f"files/gradients/{index:04d}.safetensors" for index in range(2)]
    before = [path.stat().st_ino for path in shards]

    recorder = Recorder()
    out = run(ask, recorder)
    assert recorder.of("validate") == []
    assert recorder.of("extract")[0] == (16, DOCUMENTS)
    assert recorder.of("extract")[-1] == (DOCUMENTS, DOCUMENTS)
    # A store never writes in place, and the bundle's files are links to those of the work folder.
    assert [(out / "gradients" / path.name).stat().st_ino for path in shards] == before
    assert contents(out) == contents(whole[0])
    assert not partial(out).exists()


def test_an_audit_interrupted_twice_in_every_stage_ends_with_the_same_bits(
    asked: Asked, whole: tuple[Path, Recorder]
) -> None:
    """At the first word of each stage and at its last, when outputs lie there and no marker does."""
    ask = asked("often")
    for stage in RUN:
        for count in (1, len(whole[1].of(stage))):
            with pytest.raises(KeyboardInterrupt):
                run(ask, _stopping_at(stage, count))
            assert not ask.out.exists()
    assert len(finished(ask.out)) == len(RUN) - 1 + len(FAN_OUT.intersection(RUN)) * (SHARDS - 1)
    recorder = Recorder()
    assert contents(run(ask, recorder)) == contents(whole[0])
    assert {told.stage for told in recorder.told} == {"report"}


def test_work_of_another_version_of_the_software_is_not_gone_on_with(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = asked("upgraded")
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "curvature"))
    monkeypatch.setattr("atomscope_workers.local.software_versions", lambda: {"torch": "another"})
    recorder = Recorder()
    run(ask, recorder)
    assert recorder.of("extract")[0] == (0, DOCUMENTS)


def test_work_of_other_arithmetic_is_not_gone_on_with(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asked("recomputed")
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "curvature"))
    monkeypatch.setattr("atomscope_workers.local.VERSION", 0)
    recorder = Recorder(lambda told: told.stage == "eigenbases")
    with pytest.raises(KeyboardInterrupt):
        run(ask, recorder)
    assert recorder.of("extract")[0] == (0, DOCUMENTS)


def test_what_a_killed_run_left_half_done_is_removed(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    ask = asked("killed")
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "curvature"))
    scratch = partial(ask.out) / "unit-killed"
    scratch.mkdir()
    (scratch / "gradients.safetensors").write_bytes(b"half")
    seen: list[bool] = []
    out = run(ask, lambda stage, progress: seen.append(scratch.exists()))
    assert set(seen) == {False}
    assert contents(out) == contents(whole[0])


def test_another_setting_does_not_resume_from_stale_work(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    """Nor do its outputs reach the bundle: the stale plan has more shards."""
    ask = asked("stale")
    stale = msgspec.structs.replace(ask, config=msgspec.structs.replace(SMALL, shard_documents=5))
    with pytest.raises(KeyboardInterrupt):
        run(stale, Recorder(lambda told: told.stage == "project"))
    recorder = Recorder()
    out = run(ask, recorder)
    assert {told.stage for told in recorder.told} == set(RUN)
    assert recorder.of("extract")[0] == (0, DOCUMENTS)
    assert contents(out) == contents(whole[0])


@pytest.mark.parametrize("changed", ["adapter", "dataset", "base_model"])
def test_another_input_does_not_resume_from_stale_work(asked: Asked, tmp_path: Path, changed: str) -> None:
    """The path stays the same: it is the content that counts."""
    ask = asked("content")
    copies = {
        "adapter": Path(copytree(ask.adapter, tmp_path / "adapter")),
        "base_model": Path(copytree(ask.base_model, tmp_path / "base")),
        "dataset": Path(copy(ask.dataset, tmp_path / "train.jsonl")),
    }
    ask = msgspec.structs.replace(ask, out=tmp_path / "out", **copies)
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "extract"))
    touched = {
        "adapter": "adapter/adapter_config.json",
        "base_model": "base/config.json",
        "dataset": "train.jsonl",
    }
    with (tmp_path / touched[changed]).open("a") as file:
        file.write("\n")
    recorder = Recorder(lambda told: told.stage == "extract")
    with pytest.raises(KeyboardInterrupt):
        run(ask, recorder)
    assert recorder.of("validate") != []


def test_counts_rise_to_the_total_of_every_stage(whole: tuple[Path, Recorder]) -> None:
    recorder = whole[1]
    assert list(dict.fromkeys(told.stage for told in recorder.told)) == RUN
    for stage in RUN:
        counts = recorder.of(stage)
        dones = [done for done, _ in counts]
        assert dones == sorted(dones), stage
        assert counts[-1][0] == counts[-1][1] > 0, stage
        assert all(done <= total for done, total in counts), stage
    for stage in FAN_OUT.intersection(RUN):
        assert {total for _, total in recorder.of(stage)} == {DOCUMENTS}
        # Of a unit the documents of its shard, or its part of the work on all of them.
        edges = {7, 15, 22} if stage == "combine" else {8, 16, 24}
        assert {0, *edges, DOCUMENTS} <= {done for done, _ in recorder.of(stage)}


def test_the_units_of_progress_are_words_for_people(whole: tuple[Path, Recorder]) -> None:
    units = {(told.stage, told.unit) for told in whole[1].told}
    assert ("extract", "documents") in units
    assert {unit for _, unit in units} == {"documents", "shards", "fits", "steps"}


def test_a_finished_bundle_is_given_back_without_work(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    recorder = Recorder()
    assert run(asked("whole"), recorder) == whole[0]
    assert recorder.told == []
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before
    assert not partial(whole[0]).exists()


def test_the_bundle_says_what_made_it(asked: Asked, whole: tuple[Path, Recorder]) -> None:
    bundle = atomscope.open(whole[0])
    bundle.verify()
    assert bundle.spec.config == SMALL
    assert bundle.spec.dataset.location == str(asked("whole").dataset)
    assert bundle.manifest.audit_id == bundle.spec.audit_id == bundle.report.audit_id
    assert bundle.spec.versions.keys() >= {"python", "torch", "transformers", "peft"}
    assert list(bundle.documents) == list(range(DOCUMENTS))
