"""Files that bundles share in the store of a service: found there, in their own project, or in place."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest

import atomscope
from atomscope.bundle import Bundle, layout, write_manifest
from atomscope.errors import BundleError
from atomscope.store import LocalStore
from atomscope.types.bundle import FileEntry, Manifest

PREFIX = "projects/prj_1/audits/aud_1/bundle-a1-f1/"
KEY = "projects/prj_1/extractions/aud_0/0000000000-000002-ab/f1/gradients.safetensors"
PATH = layout.gradient_shard(0)
CONTENT = b"gradients"


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "store")
    made.put_bytes(KEY, CONTENT)
    made.put_bytes(f"{PREFIX}{layout.PLAN}", b"{}")
    files = [entry(PATH, CONTENT), entry(layout.PLAN, b"{}")]
    write_manifest(made, PREFIX, "aud_1", files, parent="aud_0", shared={PATH: KEY})
    return made


def test_a_shared_file_is_read_where_it_lies(store: LocalStore, tmp_path: Path) -> None:
    bundle = atomscope.open(tmp_path / "store" / PREFIX)
    bundle.verify()
    assert bundle.manifest.parent == "aud_0"
    assert (bundle.holds(PATH), bundle.key(PATH)) == (True, KEY)
    assert bundle.file(PATH).read_bytes() == CONTENT
    assert atomscope.open(f"file://{tmp_path}/store/{PREFIX.rstrip('/')}").holds(PATH)


def test_in_a_copy_it_is_in_place_or_missing(store: LocalStore, tmp_path: Path) -> None:
    copy = shutil.copytree(tmp_path / "store" / PREFIX, tmp_path / "copy")
    assert not atomscope.open(copy).holds(PATH)
    assert atomscope.open(copy).verify() == [PATH]
    with pytest.raises(BundleError, match=r"gradients/0000.safetensors is no longer there: it has expired"):
        atomscope.open(copy).file(PATH)
    (copy / PATH).parent.mkdir()
    (copy / PATH).write_bytes(CONTENT)
    assert atomscope.open(copy).verify() == []
    (copy / PATH).write_bytes(CONTENT[::-1])
    with pytest.raises(BundleError, match="its SHA-256 is not"):
        atomscope.open(copy).verify()


def test_once_expired_it_is_no_damage_and_the_rest_is_still_checked(store: LocalStore) -> None:
    bundle = Bundle(store, PREFIX)
    assert (bundle.gradients_kept, bundle.verify()) == ("kept", [])
    store.delete(KEY)
    assert (bundle.holds(PATH), bundle.holds(layout.PLAN)) == (False, True)
    assert (bundle.gradients_kept, bundle.verify()) == ("expired", [PATH])
    store.put_bytes(f"{PREFIX}{layout.PLAN}", b"[]")
    with pytest.raises(BundleError, match=r"plan.json is damaged"):
        bundle.verify()
    store.delete(f"{PREFIX}{layout.PLAN}")
    with pytest.raises(BundleError, match=r"plan.json is missing"):
        bundle.verify()


@pytest.mark.parametrize(
    "key",
    [
        "projects/prj_1/audits/aud_2/a1/spec.json",
        "projects/prj_1/extractions/../../secret",
        "/projects/prj_1/extractions/x/y",
        "elsewhere",
    ],
)
def test_a_manifest_that_shares_what_is_no_extraction_is_refused(store: LocalStore, key: str) -> None:
    manifest = msgspec.json.decode(store.get_bytes(f"{PREFIX}{layout.MANIFEST}"), type=Manifest)
    changed = msgspec.structs.replace(manifest, shared={PATH: key})
    store.put_bytes(f"{PREFIX}{layout.MANIFEST}", msgspec.json.encode(changed))
    with pytest.raises(BundleError, match="may not share"):
        Bundle(store, PREFIX)


def test_files_of_another_project_are_never_reached(store: LocalStore) -> None:
    other = KEY.replace("prj_1", "prj_2")
    store.put_bytes(other, CONTENT)
    manifest = msgspec.json.decode(store.get_bytes(f"{PREFIX}{layout.MANIFEST}"), type=Manifest)
    store.put_bytes(
        f"{PREFIX}{layout.MANIFEST}",
        msgspec.json.encode(msgspec.structs.replace(manifest, shared={PATH: other})),
    )
    bundle = Bundle(store, PREFIX)
    assert (bundle.holds(PATH), bundle.key(PATH)) == (False, f"{PREFIX}{PATH}")


def test_nothing_is_committed_while_a_shared_file_is_not_there(store: LocalStore) -> None:
    store.delete(f"{PREFIX}{layout.MANIFEST}")
    store.delete(KEY)
    with pytest.raises(BundleError, match="the store holds nothing"):
        write_manifest(store, PREFIX, "aud_1", [entry(PATH, CONTENT)], shared={PATH: KEY})
    assert not store.exists(f"{PREFIX}{layout.MANIFEST}")
