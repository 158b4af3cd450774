"""The local driver: what an output may be, and what a refused audit leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from atomscope.cli.registry import LocalRun
from atomscope.errors import InvalidInput, NothingToAudit
from atomscope_workers import local
from tests.fixtures.corpus import rows, write_corpus
from tests.workers.local_runs import SMALL, Recorder, Told, contents, finished, partial, request, run

SMALLEST = msgspec.structs.replace(SMALL, n_atoms=2, alpha=0.5)

Asked = Callable[[Path], LocalRun]


@pytest.fixture(scope="module")
def asked(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The same audit with any output."""
    dataset = write_corpus(tmp_path_factory.mktemp("out") / "train.jsonl", 12)
    return lambda out: request(tiny_llama, plain_adapter, dataset, out, SMALLEST)


def _snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _refused(ask: LocalRun, told: str, code: str = "bad_path") -> InvalidInput:
    """The audit is refused before any work is done, and nothing on the disk has changed."""
    before = _snapshot(ask.out.parent)
    recorder = Recorder()
    with pytest.raises(InvalidInput) as caught:
        run(ask, recorder)
    assert caught.value.code == code
    assert told in caught.value.detail
    assert recorder.told == []
    assert _snapshot(ask.out.parent) == before
    return caught.value


def test_the_bundle_of_another_audit_is_left_alone(asked: Asked, tmp_path: Path) -> None:
    run(asked(tmp_path / "out"))
    other = msgspec.structs.replace(asked(tmp_path / "out"), config=msgspec.structs.replace(SMALLEST, seed=7))
    assert str(tmp_path / "out") in _refused(other, "another audit").detail


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"notes.txt": "mine"}, "not an audit bundle"),
        ({"manifest.json": "{"}, "not an audit bundle"),
        ({"manifest.json": '{"format_version": 99}'}, "upgrade atomscope"),
    ],
    ids=["a folder of notes", "a damaged manifest", "a bundle of a newer format"],
)
def test_a_folder_of_something_else_is_left_alone(
    asked: Asked, tmp_path: Path, files: dict[str, str], told: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
    _refused(asked(out), told)


def test_a_file_is_left_alone(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    _refused(asked(tmp_path / "out"), "is a file")


def test_a_mount_point_is_refused_before_the_work_and_not_after_it(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be replaced by the bundle; to mount one takes rights that a test has not."""
    (tmp_path / "out").mkdir()

    def is_mount(path: Path) -> bool:
        return path == tmp_path / "out"

    monkeypatch.setattr(Path, "is_mount", is_mount)
    _refused(asked(tmp_path / "out"), "mount point")


@pytest.mark.parametrize("kind", ["an empty folder", "a link to an empty folder", "a missing parent"])
def test_an_output_that_holds_nothing_is_taken(asked: Asked, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "an empty folder":
        out.mkdir()
    elif kind == "a link to an empty folder":
        (tmp_path / "there").mkdir()
        out.symlink_to(tmp_path / "there")
    else:
        out = tmp_path / "a" / "b" / "out"
    bundle = run(asked(out))
    assert contents(bundle) == contents(out)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_partial_that_is_not_ours_is_left_alone(asked: Asked, tmp_path: Path, kind: str) -> None:
    foreign = partial(tmp_path / "out")
    if kind == "folder":
        foreign.mkdir()
        (foreign / "download.part").write_text("mine")
    else:
        foreign.write_text("mine")
    assert str(foreign) in _refused(asked(tmp_path / "out"), "no work folder").detail


def test_a_second_run_at_the_same_time_is_refused_and_the_first_goes_on(asked: Asked, tmp_path: Path) -> None:
    """Also one with other settings, which would throw away the work of the first."""
    ask = asked(tmp_path / "out")
    other = msgspec.structs.replace(ask, config=msgspec.structs.replace(SMALLEST, seed=7))
    refused: list[str] = []

    def meanwhile(stage: str, progress: object) -> None:
        if stage == "extract" and not refused:
            for second in (ask, other):
                refused.append(_refused(second, "another process", "in_use").detail)

    out = run(ask, meanwhile)
    assert len(refused) == 2
    assert contents(out) == contents(run(asked(tmp_path / "alone")))


def test_a_run_that_comes_second_takes_the_bundle_of_the_first(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends between the second's look at the output and its hold on the work folder."""
    ask = asked(tmp_path / "out")
    held = local.held

    def late(work: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(local, "held", held)
        run(ask)
        return held(work)

    monkeypatch.setattr(local, "held", late)
    recorder = Recorder()
    assert run(ask, recorder) == ask.out
    assert recorder.told == []
    assert not partial(ask.out).exists()


def test_work_that_outlived_its_bundle_is_removed(asked: Asked, tmp_path: Path) -> None:
    """Left by a run that was killed after it had moved the bundle to its place."""
    ask = asked(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(ask, Recorder(lambda told: told.stage == "extract"))
    kept = partial(ask.out).rename(tmp_path / "kept")
    run(ask)
    kept.rename(partial(ask.out))
    before = contents(ask.out)
    recorder = Recorder()
    assert run(ask, recorder) == ask.out
    assert recorder.told == []
    assert not partial(ask.out).exists()
    assert contents(ask.out) == before


@pytest.mark.parametrize("field", ["base_model", "adapter", "dataset"])
def test_a_missing_path_is_named(asked: Asked, tmp_path: Path, field: str) -> None:
    ask = msgspec.structs.replace(asked(tmp_path / "out"), **{field: Path("no/such/thing")})
    _refused(ask, "no/such/thing")


BAD: list[tuple[str, Sequence[object], type[InvalidInput], str, str]] = [
    ("no row", [], NothingToAudit, "empty_dataset", "holds no row"),
    ("one document", rows(1), NothingToAudit, "too_few_documents", "at least 2"),
    (
        "prompts alone",
        [{"messages": [{"role": "user", "content": "hello"}]}] * 3,
        NothingToAudit,
        "no_targets",
        "3 rows were dropped",
    ),
    ("a bad row", [*rows(3), {"prompt": 3}], InvalidInput, "bad_row", "line 4"),
]


@pytest.mark.parametrize(
    ("lines", "kind", "code", "told"), [case[1:] for case in BAD], ids=[c[0] for c in BAD]
)
def test_a_refused_data_set_says_why_and_the_mended_one_is_audited(
    asked: Asked, tmp_path: Path, lines: Sequence[object], kind: type[InvalidInput], code: str, told: str
) -> None:
    dataset = tmp_path / "train.jsonl"
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = dataset.read_bytes()
    ask = msgspec.structs.replace(asked(tmp_path / "out"), dataset=dataset)
    with pytest.raises(kind) as caught:
        run(ask)
    assert caught.value.code == code
    assert told in caught.value.detail
    assert "train.jsonl" in caught.value.detail
    assert dataset.read_bytes() == before
    assert not ask.out.exists()
    assert not partial(ask.out).exists()
    write_corpus(dataset, 4)
    assert run(ask) == ask.out
    assert not partial(ask.out).exists()


def test_work_that_a_later_refusal_leaves_can_be_gone_on_from(asked: Asked, tmp_path: Path) -> None:
    """What was extracted is not thrown away because a stage after it refused."""
    ask = asked(tmp_path / "out")
    with pytest.raises(InvalidInput, match="for now"):
        run(ask, Recorder(_refuse_after_extraction))
    assert "extract-0000" in finished(ask.out)
    recorder = Recorder()
    assert run(ask, recorder) == ask.out
    assert "extract" not in {told.stage for told in recorder.told}


def _refuse_after_extraction(told: Told) -> bool:
    if told.stage == "dictionary":
        raise InvalidInput("not_now", "refused for now")
    return False
