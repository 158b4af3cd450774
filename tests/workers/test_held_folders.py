"""A held folder goes with whoever holds it, and one that a killed worker left goes with the next start."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atomscope_workers.held_folders import held_folder, process_folder, remove_leftovers

KILLED = """
import os
from pathlib import Path
from atomscope_workers.held_folders import held_folder
with held_folder() as scratch:
    (scratch / "gradients").write_bytes(b"many")
    print(scratch, flush=True)
    os._exit(70)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_gone_when_the_unit_ends(folder: Path) -> None:
    with held_folder() as scratch:
        (scratch / "file").write_text("x")
        assert scratch.is_relative_to(folder)
    assert list(folder.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_at_once(folder: Path) -> None:
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, check=False)
    left = Path(done.stdout.decode().strip())
    assert (done.returncode, left.is_relative_to(folder), left.is_dir()) == (70, True, True)
    remove_leftovers()
    assert list(folder.iterdir()) == []


def test_what_is_left_of_a_fetched_input_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCOPE_CACHE", str(folder / "cache"))
    inputs = folder / "cache" / "inputs"
    inputs.mkdir(parents=True)
    code = KILLED.replace("held_folder()", f"held_folder(Path({str(inputs)!r}))")
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert len(list(inputs.iterdir())) == 1
    remove_leftovers()
    assert list(inputs.iterdir()) == []


def test_what_is_held_and_what_is_another_program_s_stay(folder: Path) -> None:
    """A link, and a folder without a lock of ours, lead elsewhere."""
    other, target = folder / "somebody's", folder / "target"
    other.mkdir()
    target.mkdir()
    (folder / ".atomscope-held-linked").symlink_to(target)
    (folder / ".atomscope-held-unlocked").mkdir()
    with held_folder() as scratch:
        remove_leftovers()
        assert scratch.is_dir()
    assert other.is_dir()
    assert list(target.iterdir()) == []
    assert (folder / ".atomscope-held-unlocked").is_dir()


def test_a_folder_is_held_until_it_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that starts while another one removes gigabytes does not remove them too."""
    removed: list[Path] = []

    def removing(path: Path, **_: object) -> None:
        remove_leftovers()
        removed.append(path)

    with held_folder() as scratch:
        monkeypatch.setattr(shutil, "rmtree", removing)
    assert removed == [scratch, scratch.parent]


def test_what_is_left_of_a_removal_that_was_killed_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was removed before, the lock tells until the end that nobody holds it."""
    removed: list[Path] = []

    def killed(path: Path, **_: object) -> None:
        removed.append(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), held_folder() as scratch:
        monkeypatch.setattr(shutil, "rmtree", killed)
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert (removed, scratch.parent.joinpath(".lock").is_file()) == ([scratch], True)
    remove_leftovers()
    assert list(folder.iterdir()) == []


def test_a_process_whose_folder_was_cleaned_away_gets_another() -> None:
    first = process_folder()
    assert process_folder() == first
    shutil.rmtree(first)
    assert process_folder() != first
    assert process_folder().is_dir()


def test_a_file_that_cannot_be_removed_fails_no_unit_that_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: str, *, dir_fd: int | None = None) -> None:
        raise OSError(path)

    with caplog.at_level(logging.WARNING), held_folder() as scratch:
        (scratch / "file").write_text("x")
        monkeypatch.setattr(os, "unlink", refused)
    monkeypatch.undo()
    assert "is left" in caplog.text
