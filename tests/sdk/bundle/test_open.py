"""`atomscope.open`: a folder by path or address, or a prefix of a real S3 server."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import atomscope
from atomscope.bundle import layout
from atomscope.store import ObjectStore, StoreError, open_store
from tests.fixtures.s3 import S3Server
from tests.sdk.bundle import golden_bundle as made
from tests.sdk.bundle.golden_bundle import GOLDEN


def _equals_golden(bundle: atomscope.Bundle) -> None:
    bundle.verify()
    assert (bundle.spec.audit_id, bundle.plan, bundle.report) == (made.AUDIT_ID, made.PLAN, made.REPORT)
    assert list(bundle.documents.values()) == made.DOCUMENTS
    assert [shard["document"].tolist() for shard in bundle.gradients()] == [[0, 2], [3]]
    assert [match.id for match in bundle.atoms[0].documents()] == ["row-0"]
    for atom in bundle.atoms:
        assert all((tensor == atom.index + 0.25).all() for tensor in atom.vector().values())


def test_a_folder_is_opened_by_path_text_or_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(GOLDEN, tmp_path / "a b?#%2e")
    monkeypatch.chdir(tmp_path)
    for address in (folder, str(folder), folder.as_uri(), Path(folder.name), folder.name, f"{folder}/"):
        _equals_golden(atomscope.open(address))


def test_a_bundle_opened_by_a_relative_path_outlives_a_change_of_folder(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(copied.parent)
    bundle = atomscope.open(copied.name)
    monkeypatch.chdir("/")
    assert bundle.report == made.REPORT


def test_a_folder_of_a_bundle_may_be_reached_by_a_link(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    _equals_golden(atomscope.open(tmp_path / "link"))


def test_reading_leaves_nothing_in_the_folder(copied: Path) -> None:
    before = sorted(copied.rglob("*"))
    _equals_golden(atomscope.open(copied))
    assert sorted(copied.rglob("*")) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for address in (tmp_path / "none", (tmp_path / "none").as_uri()):
        with pytest.raises(atomscope.BundleError, match="no such folder"):
            atomscope.open(address)
    assert not (tmp_path / "none").exists()


def test_a_folder_or_file_that_is_no_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(atomscope.BundleError, match=r"no manifest\.json"):
        atomscope.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(atomscope.BundleError, match="no such folder"):
        atomscope.open(tmp_path / "file")


@pytest.mark.parametrize("address", ["http://host/bundle", "s3://", "file://host/bundle", "gs://bucket/x"])
def test_an_address_of_no_store_is_a_store_error(address: str) -> None:
    with pytest.raises(StoreError):
        atomscope.open(address)


@pytest.fixture(scope="module")
def s3_folder(s3_server: S3Server) -> Iterator[ObjectStore]:
    """A prefix that holds the golden bundle; the server is the one of this process's environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        store = open_store(f"s3://{s3_server.new_bucket()}/some/audits")
        for path in GOLDEN.rglob("*"):
            if path.is_file():
                store.put_file(f"one/{path.relative_to(GOLDEN).as_posix()}", path)
        yield store


def test_a_bundle_on_s3_is_the_same(s3_folder: ObjectStore) -> None:
    for address in (f"{s3_folder.uri}/one", f"{s3_folder.uri}/one/"):
        _equals_golden(atomscope.open(address))


def test_a_bundle_on_s3_steers_as_the_folder_does(s3_folder: ObjectStore, tmp_path: Path) -> None:
    for name, address in (("s3", f"{s3_folder.uri}/one"), ("folder", str(GOLDEN))):
        atomscope.open(address).steer({0: 0.5, 1: -0.25}).save(tmp_path / name)
    for path in (tmp_path / "folder").iterdir():
        assert (tmp_path / "s3" / path.name).read_bytes() == path.read_bytes()


def test_where_s3_holds_no_manifest_there_is_no_bundle(s3_folder: ObjectStore) -> None:
    for prefix in ("", "/one/atoms", "/none"):
        with pytest.raises(atomscope.BundleError, match=r"no manifest\.json"):
            atomscope.open(f"{s3_folder.uri}{prefix}")


def test_a_bucket_that_is_not_there_is_a_store_error(s3_folder: ObjectStore) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket"):
        atomscope.open("s3://no-such-bucket-here/one")


def test_damage_on_s3_is_told_by_file(s3_folder: ObjectStore) -> None:
    for item in list(s3_folder.list("one/")):
        s3_folder.copy(item.key, item.key.replace("one/", "two/", 1))
    address = f"{s3_folder.uri}/two"
    s3_folder.delete(f"two/{layout.REPORT}")
    s3_folder.put_bytes(f"two/{layout.PLAN}", b"{}")
    s3_folder.put_bytes("two/extra.json", b"{}")
    bundle = atomscope.open(address)
    with pytest.raises(atomscope.BundleError, match=r"^report\.json is missing"):
        _ = bundle.report
    with pytest.raises(atomscope.BundleError, match=r"^plan\.json is damaged: 2 bytes"):
        _ = bundle.plan
    with pytest.raises(
        atomscope.BundleError, match=r"^plan\.json is .*; report\.json is .*; extra\.json is not listed"
    ):
        bundle.verify()


def test_files_are_fetched_once_by_any_number_of_threads_and_removed_with_the_bundle(
    s3_folder: ObjectStore,
) -> None:
    for item in list(s3_folder.list("one/")):
        s3_folder.copy(item.key, item.key.replace("one/", "three/", 1))
    bundle = atomscope.open(f"{s3_folder.uri}/three")
    with ThreadPoolExecutor(8) as threads:
        (fetched,) = set(threads.map(bundle.file, [layout.ATOMS] * 16))
    s3_folder.delete_prefix("three/")
    assert bundle.file(layout.ATOMS) == fetched
    assert [atom.atom for atom in bundle.atoms] == made.ATOMS
    with pytest.raises(atomscope.BundleError, match=r"^report\.json is missing"):
        _ = bundle.report
    root = fetched.parents[1]
    assert root.stat().st_mode & 0o777 == 0o700
    del bundle
    gc.collect()
    assert not root.exists()


def test_a_shard_on_s3_is_not_kept_after_it_was_read(s3_folder: ObjectStore) -> None:
    bundle = atomscope.open(f"{s3_folder.uri}/one")
    root = bundle.file(layout.PLAN).parent
    for shard in bundle.gradients():
        assert list(root.glob("gradients/*")) == []
        assert shard["q_proj.lora_A.weight"].shape[1:] == (2, 3)
