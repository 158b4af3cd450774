"""A unit's folder goes with the unit, and one that a killed worker left goes with the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atomscope_workers.unit_scratch import remove_leftovers, unit_scratch

KILLED = """
import os
from atomscope_workers.unit_scratch import unit_scratch
with unit_scratch() as scratch:
    (scratch / "gradients").write_bytes(b"many")
    print(scratch, flush=True)
    os._exit(70)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(scratch: Path) -> None:
    os.utime(scratch, (0, 0))


def test_it_is_gone_when_the_unit_ends(folder: Path) -> None:
    with unit_scratch() as scratch:
        (scratch / "file").write_text("x")
        assert scratch.parent == folder
    assert list(folder.iterdir()) == []


def test_what_a_killed_worker_left_is_removed(folder: Path) -> None:
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, check=False)
    left = Path(done.stdout.decode().strip())
    assert (done.returncode, left.parent) == (70, folder)
    remove_leftovers()
    assert left.exists(), "it may be another worker's that has only begun"
    aged(left)
    remove_leftovers()
    assert not left.exists()


def test_what_another_unit_works_in_and_what_is_none_stay(folder: Path) -> None:
    other = folder / "somebody's"
    other.mkdir()
    with unit_scratch() as scratch:
        aged(scratch)
        aged(other)
        remove_leftovers()
        assert scratch.exists()
        assert other.exists()
