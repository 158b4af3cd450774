"""A bundle is put together whole: work files stay out, schemas go in, the manifest comes last."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from atomscope.bundle import Bundle, json_schemas, layout
from atomscope.errors import BundleError
from atomscope.store import LocalStore, StoreError
from atomscope_workers.stages.assemble import assemble_bundle


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path)
    for path in (layout.PLAN, layout.vector(3), layout.SHARDS):
        made.put_bytes(f"units/f2/{path}", path.encode())
    return made


SOURCES = {path: f"units/f2/{path}" for path in (layout.vector(3), layout.SHARDS, layout.PLAN)}


def test_a_bundle_holds_its_sources_and_the_schemas(store: LocalStore) -> None:
    manifest = assemble_bundle(store, SOURCES, "bundle/", "aud_1")
    bundle = Bundle(store, "bundle/")
    bundle.verify()
    assert (bundle.manifest, manifest.audit_id) == (manifest, "aud_1")
    content = {path: path.encode() for path in (layout.PLAN, layout.vector(3))} | json_schemas()
    assert {entry.path: entry.sha256 for entry in manifest.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in content.items()
    }
    assert {entry.path: entry.size for entry in manifest.files} == {
        path: len(data) for path, data in content.items()
    }


def test_gradients_that_are_not_kept_stay_out(store: LocalStore) -> None:
    paths = (layout.gradient_shard(0), "gradients/0000.json")
    for path in paths:
        store.put_bytes(path, b"gradients")
    sources = SOURCES | {path: path for path in paths}
    manifest = assemble_bundle(store, sources, "bundle/", "aud_1", keeps_gradients=False)
    assert not [entry for entry in manifest.files if entry.path.startswith(layout.GRADIENTS)]
    kept = assemble_bundle(store, sources, "kept/", "aud_1")
    assert {entry.path for entry in kept.files} >= set(paths)


def test_a_source_that_is_gone_commits_nothing(store: LocalStore) -> None:
    store.delete(SOURCES[layout.vector(3)])
    with pytest.raises(StoreError, match="vectors"):
        assemble_bundle(store, SOURCES, "bundle/", "aud_1")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle(store, "bundle/")


def test_what_broke_off_is_made_again(store: LocalStore) -> None:
    whole = {path: key for path, key in SOURCES.items() if path == layout.PLAN}
    store.put_bytes("bundle/plan.json", b"half")
    assemble_bundle(store, whole, "bundle/", "aud_1")
    Bundle(store, "bundle/").verify()


def test_the_sources_outlive_the_bundle(store: LocalStore) -> None:
    assemble_bundle(store, SOURCES, "bundle/", "aud_1")
    store.delete_prefix("bundle/")
    assert all(store.get_bytes(key) == path.encode() for path, key in SOURCES.items())


@pytest.mark.parametrize("size", [0, 2**20 - 1, 2**20, 2**20 + 1, 5 * 2**19])
def test_digests_are_of_whole_files_beyond_one_block(store: LocalStore, size: int) -> None:
    data = (b"0123456789" * (1 + size // 10))[:size]
    store.put_bytes("units/large", data)
    manifest = assemble_bundle(store, {"workbook": "units/large"}, "bundle/", "aud_1")
    found = {entry.path: (entry.size, entry.sha256) for entry in manifest.files}
    assert found["workbook"] == (size, hashlib.sha256(data).hexdigest())  # not below `work/`
