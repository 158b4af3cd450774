"""Local audits that share a cache extract what none did before; one that is damaged or gone loses nothing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from atomscope.bundle import layout, open_bundle
from atomscope.cli.registry import LocalRun
from atomscope.errors import InvalidInput
from atomscope.types.bundle import StoredShard
from atomscope.types.spec import AuditConfig, StoredGradients
from atomscope_workers import held_folders, shard_cache
from atomscope_workers.local import InProcess
from atomscope_workers.shard_cache import ShardCache
from atomscope_workers.stages.context import KnownShard
from tests.fixtures.corpus import write_corpus
from tests.fixtures.models import TinyAdapterFactory
from tests.workers.local_runs import SMALL, Recorder, contents, partial, request, run

DOCUMENTS, SHARDS = 20, 3
"""Of 8 documents a shard, the last one shorter."""
GROWN = 26
CONFIG = msgspec.structs.replace(SMALL, fits=1, surrogates=0)


class Cached:
    """Audits of one adapter that share a cache."""

    def __init__(self, base: Path, adapter: Path, folder: Path) -> None:
        self.base, self.adapter, self.folder = base, adapter, folder
        self.cache = folder / "cache"

    def asked(
        self, out: str, documents: int = DOCUMENTS, config: AuditConfig = CONFIG, *, cache: bool = True
    ) -> LocalRun:
        data = write_corpus(self.folder / f"{documents}.jsonl", documents)
        asked = request(self.base, self.adapter, data, self.folder / out, config)
        return msgspec.structs.replace(asked, shard_cache=self.cache) if cache else asked

    def entries(self) -> list[Path]:
        return sorted(entry.parent for entry in self.cache.glob(f"*/{layout.ENTRY}"))


@pytest.fixture
def cached(tiny_llama: Path, plain_adapter: Path, tmp_path: Path) -> Cached:
    return Cached(tiny_llama, plain_adapter, tmp_path)


@pytest.fixture(scope="module")
def filled(tiny_llama: Path, plain_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """A cache that one audit, `first`, has filled; its entries are not to be changed."""
    made = Cached(tiny_llama, plain_adapter, tmp_path_factory.mktemp("filled"))
    run(made.asked("first"))
    return made


@pytest.fixture
def own(filled: Cached, tmp_path: Path) -> Cached:
    """The same cache, to be changed."""
    made = Cached(filled.base, filled.adapter, tmp_path)
    shutil.copytree(filled.cache, made.cache)
    return made


def extracted(bundle: Path) -> int:
    found: int = open_bundle(bundle).report.details["documents_extracted"]
    return found


def gradients(bundle: Path) -> dict[str, np.ndarray]:
    shards = list(open_bundle(bundle).gradients())
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def without_count(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but what says how many documents were extracted, or follows from it."""
    return {path: data for path, data in files.items() if path not in (layout.REPORT, layout.MANIFEST)}


def test_equal_data_under_other_settings_extracts_nothing_and_finds_the_same(filled: Cached) -> None:
    other = msgspec.structs.replace(CONFIG, n_atoms=3, alpha=0.2, seed=5)
    recorder = Recorder()
    shared = run(filled.asked("shared", config=other), recorder)
    alone = run(filled.asked("alone", config=other, cache=False))
    assert (extracted(shared), extracted(alone)) == (0, DOCUMENTS)
    assert without_count(contents(shared)) == without_count(contents(alone))
    assert recorder.of("extract")[-1] == (DOCUMENTS, DOCUMENTS)
    assert len(filled.entries()) == SHARDS


def test_appended_rows_alone_are_extracted_and_kept(own: Cached) -> None:
    before = {entry.name for entry in own.entries()}
    grown = run(own.asked("grown", GROWN))
    assert extracted(grown) == GROWN - DOCUMENTS
    added = {entry.name for entry in own.entries()} - before
    assert [name[:17] for name in added] == [f"{DOCUMENTS:010d}-{GROWN - DOCUMENTS:06d}"]
    fresh = run(own.asked("fresh", GROWN, cache=False))
    found, wanted = gradients(grown), gradients(fresh)
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert np.linalg.norm(found[name] - rows) <= 1e-5 * np.linalg.norm(rows)
    assert extracted(run(own.asked("again", GROWN, msgspec.structs.replace(CONFIG, n_atoms=3)))) == 0


def test_another_adapter_or_template_takes_nothing(own: Cached, tiny_adapter: TinyAdapterFactory) -> None:
    other = msgspec.structs.replace(own.asked("other"), adapter=tiny_adapter(seed=7))
    assert extracted(run(other)) == DOCUMENTS
    shaped = msgspec.structs.replace(CONFIG, chat_template="zephyr")
    assert extracted(run(own.asked("shaped", config=shaped))) == DOCUMENTS


def test_the_cache_shares_files_with_the_bundle_and_may_go(own: Cached) -> None:
    bundle = run(own.asked("bundle"))
    name = own.entries()[0] / "gradients.safetensors"
    assert name.samefile(bundle / layout.gradient_shard(0))
    shutil.rmtree(own.cache)
    assert open_bundle(bundle).verify() == []


@pytest.mark.parametrize("harm", ["a changed byte", "a lost file", "a lost digest", "an unreadable entry"])
def test_a_damaged_shard_is_named_and_extracted_once_it_is_removed(own: Cached, harm: str) -> None:
    entry = own.entries()[1]
    file = entry / "gradients.safetensors"
    if harm == "a changed byte":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "a lost file":
        file.unlink()
    elif harm == "a lost digest":
        (entry / layout.ENTRY).write_text('{"files": {}}')
    else:
        (entry / layout.ENTRY).write_text("{")
    with pytest.raises(InvalidInput, match=entry.name) as refused:
        run(own.asked("out"))
    assert refused.value.code == "cache_damaged"
    assert not partial(own.folder / "out").exists()
    shutil.rmtree(entry)
    bundle = run(own.asked("out"))
    assert 0 < extracted(bundle) < DOCUMENTS
    assert entry in own.entries()


def test_a_shard_is_kept_as_soon_as_it_is_extracted(cached: Cached) -> None:
    stop = Recorder(stop=lambda told: told.stage == "extract" and told.done > 8)
    with pytest.raises(KeyboardInterrupt):
        run(cached.asked("stopped"), stop)
    assert len(cached.entries()) == 1
    assert extracted(run(cached.asked("elsewhere"))) == DOCUMENTS - 8
    assert len(cached.entries()) == SHARDS


def test_an_audit_that_was_stopped_goes_on_without_the_cache_that_it_took_from(own: Cached) -> None:
    stop = Recorder(stop=lambda told: told.stage == "extract")
    with pytest.raises(KeyboardInterrupt):
        run(own.asked("stopped"), stop)
    shutil.rmtree(own.cache)
    assert extracted(run(own.asked("stopped", cache=False))) == 0


def test_an_audit_that_began_without_a_cache_fills_it_when_it_goes_on(cached: Cached) -> None:
    stop = Recorder(stop=lambda told: told.stage == "eigenbases")
    with pytest.raises(KeyboardInterrupt):
        run(cached.asked("stopped", cache=False), stop)
    run(cached.asked("stopped"))
    assert len(cached.entries()) == SHARDS


def test_what_a_stopped_audit_took_is_not_in_the_bundle_of_one_that_goes_on_without_it(
    own: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(own.asked("grown", 22))
    assert len(own.entries()) == 4  # of 8, 8, 4 and 2 documents: alone they are 8, 8 and 6
    asked = own.asked("out", 22, msgspec.structs.replace(CONFIG, n_atoms=3))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(shard_cache.os, "utime", stopped)  # all is linked by then
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    assert (partial(asked.out) / "files" / layout.gradient_shard(3)).exists()
    bundle = run(msgspec.structs.replace(asked, shard_cache=None))
    stored = sorted(path.name for path in (bundle / "gradients").glob("*.safetensors*"))
    assert stored == ["0000.safetensors", "0001.safetensors", "0002.safetensors"]
    assert extracted(bundle) == 22


def test_on_another_disk_files_are_copied(own: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    bundle = run(own.asked("out", GROWN))
    assert extracted(bundle) == GROWN - DOCUMENTS
    assert len(own.entries()) == SHARDS + 1
    own_file = own.entries()[0] / "gradients.safetensors"
    assert own_file.read_bytes() == (bundle / layout.gradient_shard(0)).read_bytes()
    assert not own_file.samefile(bundle / layout.gradient_shard(0))
    assert not list(bundle.rglob("*.tmp"))


def test_a_cache_whose_files_are_symbolic_links_is_read_through_them(own: Cached) -> None:
    for entry in own.entries():
        file = entry / "gradients.safetensors"
        file.rename(own.folder / f"{entry.name}.safetensors")
        file.symlink_to(own.folder / f"{entry.name}.safetensors")
    bundle = run(own.asked("out"))
    assert extracted(bundle) == 0
    assert not (bundle / layout.gradient_shard(0)).is_symlink()


def test_a_cache_that_may_only_be_read_is_refused_before_anything_is_extracted(
    own: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(held_folders.tempfile, "mkdtemp", refuse)
    recorder = Recorder()
    with pytest.raises(InvalidInput, match="cannot be written to: Permission denied") as refused:
        run(own.asked("out"), recorder)
    assert (refused.value.code, recorder.told) == ("bad_path", [])
    below = msgspec.structs.replace(own.asked("out"), shard_cache=own.entries()[0] / layout.ENTRY / "cache")
    with pytest.raises(InvalidInput, match="cannot be written to: Not a directory"):
        run(below)


def test_an_entry_of_another_user_is_taken(own: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shard_cache.os, "utime", refuse)
    assert extracted(run(own.asked("out"))) == 0


def test_a_full_cache_stops_the_audit_with_what_it_has_and_it_goes_on_without(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(shard_cache, "link", full)
        with pytest.raises(InvalidInput, match="No space left on device") as refused:
            run(cached.asked("out"))
    assert refused.value.code == "cache_unwritable"
    assert cached.entries() == []
    assert list(cached.cache.iterdir()) == []
    recorder = Recorder()
    run(cached.asked("out", cache=False), recorder)
    assert recorder.of("extract")[0][0] == 8


def test_an_entry_that_was_half_removed_is_made_anew(own: Cached) -> None:
    entry = own.entries()[0]
    (entry / layout.ENTRY).unlink()
    assert extracted(run(own.asked("out"))) == 8
    assert entry in own.entries()
    assert extracted(run(own.asked("again"))) == 0


def test_an_entry_that_is_removed_while_an_audit_starts_is_told_as_such(
    own: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = own.entries()[1]
    known = ShardCache.known

    def listed(cache: ShardCache) -> list[KnownShard]:
        found = known(cache)
        shutil.rmtree(gone, ignore_errors=True)
        return found

    monkeypatch.setattr(ShardCache, "known", listed)
    with pytest.raises(InvalidInput, match="was removed meanwhile"):
        run(own.asked("out"))
    assert extracted(run(own.asked("out"))) == 8


@pytest.mark.parametrize("kept", ["sketch", "none"])
def test_a_cache_beside_gradients_that_are_not_kept_is_refused(cached: Cached, kept: StoredGradients) -> None:
    asked = cached.asked("out", config=msgspec.structs.replace(CONFIG, gradients=kept))
    with pytest.raises(InvalidInput, match=f"gradients: {kept}"):
        run(asked)
    assert not cached.cache.exists()


@pytest.mark.parametrize("place", ["out", "out/cache", "out.partial/cache"])
def test_a_cache_in_the_folder_of_the_bundle_is_refused(cached: Cached, place: str) -> None:
    cached.cache = cached.folder / place
    with pytest.raises(InvalidInput, match="lies in the folder of the bundle"):
        run(cached.asked("out"))
    assert not (cached.folder / "out").exists()


def test_a_cache_that_is_a_file_is_refused(cached: Cached) -> None:
    cached.cache.write_text("")
    with pytest.raises(InvalidInput, match="is a file: --shard-cache names a folder"):
        run(cached.asked("out"))


def test_an_estimate_counts_what_is_left_to_extract_and_writes_nothing(own: Cached) -> None:
    estimate = InProcess().estimate(own.asked("out", GROWN))
    assert estimate.details["documents_extracted"] == GROWN - DOCUMENTS
    assert len(own.entries()) == SHARDS
    own.cache = own.folder / "none"
    assert InProcess().estimate(own.asked("out", GROWN)).details["documents_extracted"] == GROWN
    assert not own.cache.exists()


def test_a_shard_that_another_audit_put_there_meanwhile_stands(own: Cached, tmp_path: Path) -> None:
    entry = own.entries()[0]
    files = tmp_path / "files"
    shards = [StoredShard(name=f"{place}") for place in range(4)]
    ShardCache(own.cache).take([*shards, StoredShard(name=entry.name, location=str(entry))], files)
    before = (entry / layout.ENTRY).read_bytes()
    assert load_file(files / layout.gradient_shard(4))
    ShardCache(own.cache).put(StoredShard(name=entry.name), 4, files)
    assert (entry / layout.ENTRY).read_bytes() == before
    other = Cached(own.base, own.adapter, tmp_path / "other")
    ShardCache(other.cache).put(StoredShard(name=entry.name), 4, files)
    assert (other.cache / entry.name / layout.ENTRY).read_bytes() == before


def test_a_shard_that_another_audit_puts_there_while_one_is_at_it_stands(
    own: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = own.entries()[0]
    files = tmp_path / "files"
    ShardCache(own.cache).take([StoredShard(name=entry.name, location=str(entry))], files)
    away = entry.rename(tmp_path / "away")
    link = shard_cache.link

    def meanwhile(source: Path, target: Path) -> None:
        link(source, target)
        if away.exists():
            away.rename(entry)

    monkeypatch.setattr(shard_cache, "link", meanwhile)
    before = (away / layout.ENTRY).stat().st_ino
    ShardCache(own.cache).put(StoredShard(name=entry.name), 0, files)
    assert (entry / layout.ENTRY).stat().st_ino == before
    assert len(own.entries()) == SHARDS


def test_what_a_killed_audit_left_in_the_cache_is_removed_by_the_next(own: Cached) -> None:
    left = own.cache / ".atomscope-held-1"
    (left / "files").mkdir(parents=True)
    (left / ".lock").touch()
    run(own.asked("out"))
    assert not left.exists()
