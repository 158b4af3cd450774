"""The work folder: held by one process, kept for its audit, safe for what is not its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atomscope.errors import InvalidInput
from atomscope_workers.work_folder import claim, held, is_work_of, work_folder

HOLD = """
import sys
from pathlib import Path
from atomscope_workers.work_folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return work_folder(tmp_path / "out")


@pytest.fixture
def holder(work: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()


def test_it_lies_beside_the_output(tmp_path: Path) -> None:
    assert work_folder(tmp_path / "audit.v1") == tmp_path / "audit.v1.partial"


def test_another_process_is_kept_out_until_the_holder_dies(work: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(InvalidInput, match="another process") as caught, held(work):
        pytest.fail("two processes hold it")
    assert caught.value.code == "in_use"
    holder.kill()
    holder.wait()
    with held(work):
        claim(work, "local_1")
    assert is_work_of(work, "local_1")


def test_it_is_let_go_when_the_run_fails(work: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), held(work):
        raise RuntimeError("broken")
    with held(work):
        pass


def test_its_own_audit_keeps_its_work(work: Path) -> None:
    with held(work):
        claim(work, "local_1")
        (work / "units").mkdir()
        (work / "units" / "validate-0000.json").write_text("{}")
    with held(work):
        claim(work, "local_1")
    assert (work / "units" / "validate-0000.json").read_text() == "{}"


def test_another_audit_begins_in_an_empty_folder(work: Path) -> None:
    with held(work):
        claim(work, "local_1")
        for name in ("units", "files", "bundle", "unit-x"):
            (work / name / "deep").mkdir(parents=True)
    with held(work):
        claim(work, "local_2")
    assert is_work_of(work, "local_2")
    assert not is_work_of(work, "local_1")
    assert [path for path in work.rglob("*") if path.is_dir()] == []


@pytest.mark.parametrize("left", [[], ["lock"]])
def test_a_run_stopped_before_it_left_its_stamp_is_no_obstacle(work: Path, left: list[str]) -> None:
    work.mkdir()
    for name in left:
        (work / name).touch()
    with held(work):
        claim(work, "local_1")
    assert is_work_of(work, "local_1")


def test_a_folder_without_our_stamp_is_left_as_it_is(work: Path) -> None:
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="no work folder"), held(work):
        pytest.fail("a foreign folder was taken")
    assert [path.name for path in work.iterdir()] == ["mine.txt"]
