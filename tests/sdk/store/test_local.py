"""What only a folder has: links, half-written files, other people's files."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atomscope.store import LocalStore, ObjectNotFound, StoreError, open_store


@pytest.fixture
def root(local_store: LocalStore) -> Path:
    path = local_store.local_path("x")
    assert path is not None
    return path.parent


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(StoreError, match="absolute"):
        LocalStore(Path("here"))


def test_a_file_is_no_folder_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="folder of the local store"):
        LocalStore(tmp_path / "file")


@pytest.mark.parametrize("name", ["with space", "per%20cent", "a#b?c", "ümlaut"])
def test_any_folder_name_survives_its_address(tmp_path: Path, name: str) -> None:
    LocalStore(tmp_path / name).put_bytes("a", b"x")
    assert open_store(LocalStore(tmp_path / name).uri).get_bytes("a") == b"x"
    assert open_store(str(tmp_path / name)).get_bytes("a") == b"x"


def test_a_linked_folder_does_not_lead_out(local_store: LocalStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "loop").symlink_to(root / "loop")
    for call in (
        lambda: local_store.get_bytes("folder/secret"),
        lambda: local_store.get_bytes("file"),
        lambda: local_store.exists("file"),
        lambda: local_store.put_bytes("folder/new", b""),
        lambda: local_store.put_bytes("file", b"changed"),
        lambda: local_store.copy("file", "copy"),
        lambda: local_store.delete("folder/secret"),
        lambda: local_store.delete_prefix("folder/"),
        lambda: local_store.local_path("folder/secret"),
        lambda: local_store.get_bytes("loop/a"),
    ):
        with pytest.raises(StoreError):
            call()
    assert list(local_store.list("")) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_deleting_a_prefix_does_not_follow_links(local_store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"")
    local_store.put_bytes("a/b", b"")
    (root / "a" / "out").symlink_to(tmp_path)
    assert local_store.delete_prefix("a/") == 1
    assert (tmp_path / "kept").exists()
    assert not (root / "a").exists()


def test_a_root_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    LocalStore(tmp_path / "link").put_bytes("a", b"x")
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


def test_a_pipe_is_no_object_and_nobody_waits_for_it(local_store: LocalStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert not local_store.exists("pipe")
    assert list(local_store.list("")) == []
    with pytest.raises(ObjectNotFound):
        local_store.get_bytes("pipe")


def test_what_a_crash_left_is_not_listed_and_goes_with_its_folder(
    local_store: LocalStore, root: Path
) -> None:
    local_store.put_bytes("a/b", b"")
    (root / "a" / ".tmp-left").write_bytes(b"half")
    assert [item.key for item in local_store.list("")] == ["a/b"]
    assert local_store.delete_prefix("a/") == 1
    assert list(root.iterdir()) == []


def test_a_failed_write_leaves_the_old_object_and_no_rubbish(
    local_store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_store.put_bytes("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        local_store.put_bytes("a", b"new")
    monkeypatch.undo()
    assert local_store.get_bytes("a") == b"old"
    assert [path.name for path in root.iterdir()] == ["a"]


def test_a_copy_is_a_link_and_leaves_no_rubbish(local_store: LocalStore, root: Path) -> None:
    local_store.put_bytes("a", b"x")
    local_store.copy("a", "b")
    local_store.copy("a", "b")
    assert (root / "a").stat().st_ino == (root / "b").stat().st_ino
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]


def test_a_moved_file_is_the_object_and_is_gone(local_store: LocalStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"content")
    local_store.put_bytes("a/b", b"old")
    local_store.move_file("a/b", tmp_path / "made")
    assert local_store.get_bytes("a/b") == b"content"
    assert not (tmp_path / "made").exists()
    assert [item.name for item in (root / "a").iterdir()] == ["b"]


def test_a_file_that_cannot_be_moved_leaves_the_old_object(local_store: LocalStore, tmp_path: Path) -> None:
    local_store.put_bytes("a/b", b"old")
    with pytest.raises(StoreError):
        local_store.move_file("a/b", tmp_path / "missing")
    assert local_store.get_bytes("a/b") == b"old"


def test_a_file_of_another_file_system_is_moved_too(
    local_store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    (tmp_path / "made").write_bytes(b"content")
    monkeypatch.setattr(os, "link", refuse)
    local_store.move_file("a", tmp_path / "made")
    assert local_store.get_bytes("a") == b"content"
    assert not (tmp_path / "made").exists()


def test_a_copy_works_where_links_do_not(
    local_store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    local_store.put_bytes("a", b"x")
    monkeypatch.setattr(os, "link", refuse)
    local_store.copy("a", "b")
    assert local_store.get_bytes("b") == b"x"
    assert (root / "a").stat().st_ino != (root / "b").stat().st_ino


def test_an_object_and_a_folder_cannot_share_a_name(local_store: LocalStore) -> None:
    local_store.put_bytes("a/b", b"")
    with pytest.raises(StoreError):
        local_store.put_bytes("a", b"")
    with pytest.raises(StoreError):
        local_store.put_bytes("a/b/c", b"")
    assert [item.key for item in local_store.list("")] == ["a/b"]


def test_new_objects_follow_the_umask(local_store: LocalStore, root: Path) -> None:
    before = os.umask(0o027)
    try:
        local_store.put_bytes("a", b"")
    finally:
        os.umask(before)
    assert (root / "a").stat().st_mode & 0o777 == 0o640


def test_writers_and_deleters_of_one_folder_do_not_trip(local_store: LocalStore) -> None:
    def work(number: int) -> None:
        for turn in range(30):
            key = f"deep/er/{number}-{turn}"
            local_store.put_bytes(key, b"x")
            local_store.delete(key)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result()
    assert list(local_store.list("")) == []


def test_a_local_path_is_the_file_or_folder_itself(local_store: LocalStore, root: Path) -> None:
    local_store.put_bytes("a/b", b"x")
    assert local_store.local_path("a/b") == root / "a" / "b"
    assert local_store.local_path("a/") == root / "a"
    with pytest.raises(StoreError):
        local_store.local_path("../a")


def test_a_move_that_meets_a_deletion_is_tried_again_and_loses_nothing(
    local_store: LocalStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is pruned between the link and the rename, once."""
    (tmp_path / "made").write_bytes(b"content")
    replace, pruned = Path.replace, list[Path]()

    def prune_first(self: Path, target: Path) -> Path:
        if not pruned:
            pruned.append(self)
            self.unlink()
            (root / "folder").rmdir()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", prune_first)
    local_store.move_file("folder/a", tmp_path / "made")
    assert pruned
    assert local_store.get_bytes("folder/a") == b"content"
    assert not (tmp_path / "made").exists()
