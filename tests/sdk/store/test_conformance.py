"""What every store promises, on a real folder and a real S3 server."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomscope.store import ObjectInfo, ObjectNotFound, ObjectStore, StoreError, open_store

SEGMENT = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,20}", fullmatch=True)
KEY = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)

BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "../a",
    "a/../b",
    "a/..",
    ".",
    "a/./b",
    ".hidden",
    "a/.tmp-1",
    "-a",
    "a b",
    "a\\b",
    "a\nb",
    "a\n",
    "a\x00b",
    "é",
    "a%2fb",
    "C:a",
    "a" * 256,
    "/".join(["abcd"] * 200),
]


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [item.key for item in store.list(prefix)]


def test_what_is_put_is_what_is_read(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # over one buffer
    store.put_bytes("a/b.bin", data)
    assert store.get_bytes("a/b.bin") == data
    assert store.size("a/b.bin") == len(data)
    assert store.exists("a/b.bin")
    store.get_file("a/b.bin", tmp_path / "new" / "folder" / "b.bin")
    assert (tmp_path / "new" / "folder" / "b.bin").read_bytes() == data
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["b.bin"]


def test_an_empty_object_is_an_object(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.put_bytes("bytes", b"")
    store.put_file("file", tmp_path / "empty")
    assert store.get_bytes("bytes") == store.get_bytes("file") == b""
    assert list(store.list("")) == [ObjectInfo(key="bytes", size=0), ObjectInfo(key="file", size=0)]


def test_a_file_over_the_multipart_threshold_goes_and_comes_whole(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "large"
    block = bytes(range(256)) * 4096
    with source.open("wb") as sink:
        for number in range(70):
            sink.write(number.to_bytes(4, "big"))
            sink.write(block)
    store.put_file("large", source)
    store.copy("large", "copy")
    store.get_file("copy", tmp_path / "back")
    assert store.size("large") == source.stat().st_size
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    length = source.stat().st_size - 5
    assert store.get_range("large", 3, length) == source.read_bytes()[3 : 3 + length]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=300), edges=st.data())
def test_any_range_of_an_object_is_that_of_its_bytes(
    store: ObjectStore, data: bytes, edges: st.DataObject
) -> None:
    store.put_bytes("ranged", data)
    start = edges.draw(st.integers(0, len(data)))
    stop = edges.draw(st.integers(start, len(data)))
    assert store.get_range("ranged", start, stop - start) == data[start:stop]


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (50, 1)])
def test_a_range_past_the_end_is_refused(store: ObjectStore, start: int, length: int) -> None:
    """Half of it would be taken for the whole."""
    store.put_bytes("a", bytes(10))
    with pytest.raises(StoreError, match="'a'"):
        store.get_range("a", start, length)


@pytest.mark.parametrize("length", [0, 1])
def test_there_is_no_range_of_a_missing_object(store: ObjectStore, length: int) -> None:
    with pytest.raises(ObjectNotFound, match="missing"):
        store.get_range("missing", 0, length)


def test_a_stored_file_is_not_tied_to_its_source(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"then")
    store.put_file("a", tmp_path / "source")
    with (tmp_path / "source").open("r+b") as sink:
        sink.write(b"now!")
    assert store.get_bytes("a") == b"then"


def test_a_fetched_file_is_not_tied_to_the_object(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("a", b"then")
    store.get_file("a", tmp_path / "fetched")
    with (tmp_path / "fetched").open("r+b") as sink:
        sink.write(b"now!")
    assert store.get_bytes("a") == b"then"


def test_a_stream_reads_in_pieces_and_closes(store: ObjectStore) -> None:
    data = b"0123456789" * 300_000
    store.put_bytes("a", data)
    with store.open_read("a") as stream:
        sink = io.BytesIO(stream.read(7))
        sink.seek(0, io.SEEK_END)
        while block := stream.read(1 << 20):
            sink.write(block)
    assert sink.getvalue() == data
    assert stream.closed


def test_a_stream_abandoned_half_way_leaves_the_store_usable(store: ObjectStore) -> None:
    store.put_bytes("a", bytes(3_000_000))
    for _ in range(30):
        with store.open_read("a") as stream:
            stream.read(1)
    assert store.size("a") == 3_000_000


def test_writing_again_replaces_the_object(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("a", b"a longer first version")
    store.put_bytes("a", b"second")
    assert store.get_bytes("a") == b"second"
    (tmp_path / "third").write_bytes(b"third")
    store.put_file("a", tmp_path / "third")
    assert store.get_bytes("a") == b"third"
    assert keys(store) == ["a"]


def test_a_copy_outlives_its_source_and_later_versions_of_it(store: ObjectStore) -> None:
    store.put_bytes("a", b"one")
    store.copy("a", "b/c")
    store.copy("a", "b/c")  # a second time, over the first
    store.copy("a", "a")
    store.put_bytes("a", b"two")
    assert store.get_bytes("b/c") == b"one"
    store.delete("a")
    assert store.get_bytes("b/c") == b"one"
    assert keys(store) == ["b/c"]


def test_a_copy_replaces_its_target(store: ObjectStore) -> None:
    store.put_bytes("a", b"new")
    store.put_bytes("b", b"old and longer")
    store.copy("a", "b")
    assert store.get_bytes("b") == b"new"


@pytest.mark.parametrize("method", ["get_bytes", "open_read", "size"])
def test_a_missing_object_is_told(store: ObjectStore, method: str) -> None:
    store.put_bytes("folder/file", b"x")
    for key in ("nothing", "folder", "folder/file/below", "folder/nothing"):
        with pytest.raises(ObjectNotFound, match="no object"):
            getattr(store, method)(key)
        assert not store.exists(key)


def test_a_missing_object_is_not_fetched_or_copied(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    with pytest.raises(ObjectNotFound):
        store.get_file("nothing", tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["kept"]
    with pytest.raises(ObjectNotFound):
        store.copy("nothing", "target")
    assert keys(store) == []


def test_a_missing_source_file_is_told_and_stores_nothing(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("a", b"kept")
    with pytest.raises(StoreError) as raised:
        store.put_file("a", tmp_path / "nothing")
    assert not isinstance(raised.value, ObjectNotFound)
    assert store.get_bytes("a") == b"kept"
    assert keys(store) == ["a"]


def test_listing_is_by_key_as_s3_orders_them(store: ObjectStore) -> None:
    names = ["a-b/c", "a/c", "a.txt", "a/b", "a0", "B", "_x", "a=b/z", "b/a/c", "b/a.c"]
    for name in names:
        store.put_bytes(name, name.encode())
    assert keys(store) == sorted(names)
    assert [item.size for item in store.list("")] == [len(name) for name in sorted(names)]


def test_a_prefix_may_end_within_a_segment(store: ObjectStore) -> None:
    for name in ("ab/1", "ab/2", "abc/3", "ac/4", "ab"[0]):
        store.put_bytes(name, b"")
    assert keys(store, "ab") == ["ab/1", "ab/2", "abc/3"]
    assert keys(store, "ab/") == ["ab/1", "ab/2"]
    assert keys(store, "ab/2") == ["ab/2"]
    assert keys(store, "b") == keys(store, "ab/1/") == keys(store, "nowhere/at/all") == []


@pytest.mark.parametrize("prefix", ["/", "/a", "a//", "../", "a/../", "a/.", "a b", "//"])
def test_a_bad_prefix_is_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(StoreError, match="not a valid key prefix"):
        store.list(prefix)


def test_deleting_is_quiet_about_what_is_not_there(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"")
    store.delete("a/nothing")
    store.delete("a")  # a folder is no object
    store.delete("a/b/c")
    assert keys(store) == ["a/b"]
    store.delete("a/b")
    store.delete("a/b")
    assert keys(store) == []
    store.put_bytes("a", b"the folder is gone with its last object")
    assert keys(store) == ["a"]


def test_deleting_a_prefix_takes_what_is_below_it_only(store: ObjectStore) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "c"):
        store.put_bytes(name, b"")
    assert store.delete_prefix("a/") == 2
    assert store.delete_prefix("a/") == 0
    assert keys(store) == ["ab/3", "c"]


@pytest.mark.parametrize("prefix", ["", "a", "/", "a//", "../", "a/../"])
def test_only_a_folder_can_be_deleted_by_prefix(store: ObjectStore, prefix: str) -> None:
    store.put_bytes("a/b", b"")
    with pytest.raises(StoreError):
        store.delete_prefix(prefix)
    assert keys(store) == ["a/b"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_bad_key_is_refused_by_every_method(store: ObjectStore, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    calls = [
        lambda: store.put_bytes(key, b""),
        lambda: store.put_file(key, tmp_path / "file"),
        lambda: store.get_bytes(key),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.open_read(key),
        lambda: store.copy(key, "ok"),
        lambda: store.exists(key),
        lambda: store.size(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="not a valid object key"):
            call()
    store.put_bytes("source", b"")
    with pytest.raises(StoreError, match="not a valid object key"):
        store.copy("source", key)


def test_the_address_opens_the_same_store(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"here")
    again = open_store(store.uri)
    assert again.uri == store.uri
    assert again.get_bytes("a/b") == b"here"


# The store is not emptied between examples: each looks at its own objects only.
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.integers(0, 10**9), found=st.dictionaries(KEY, st.binary(max_size=64), min_size=1, max_size=5))
def test_any_set_of_keys_reads_lists_and_deletes(
    store: ObjectStore, base: int, found: dict[str, bytes]
) -> None:
    # One key may not be another's folder, which a folder on disk cannot hold.
    objects = {
        f"{base}/{key}": data
        for key, data in found.items()
        if not any(other.startswith(f"{key}/") for other in found)
    }
    store.delete_prefix(f"{base}/")
    for key, data in objects.items():
        store.put_bytes(key, data)
    assert [(item.key, item.size) for item in store.list(f"{base}/")] == sorted(
        (key, len(data)) for key, data in objects.items()
    )
    assert {key: store.get_bytes(key) for key in objects} == objects
    assert store.delete_prefix(f"{base}/") == len(objects)
    assert keys(store, f"{base}/") == []


def test_a_reader_never_sees_half_an_object(store: ObjectStore, tmp_path: Path) -> None:
    versions = [bytes([number]) * (200_000 + 50_000 * number) for number in range(4)]
    files = [tmp_path / str(number) for number in range(4)]
    for path, version in zip(files, versions, strict=True):
        path.write_bytes(version)
    store.put_bytes("shared", versions[0])
    stop = threading.Event()

    def write(offset: int) -> None:
        for turn in range(12):
            number = (turn + offset) % 4
            if turn % 2:
                store.put_bytes("shared", versions[number])
            else:
                store.put_file("shared", files[number])

    def read() -> None:
        while not stop.is_set():
            assert store.get_bytes("shared") in versions
            with store.open_read("shared") as stream:
                assert stream.read() in versions

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write, number) for number in range(2)]
        wait(writers)
        stop.set()
    for future in writers + readers:
        future.result()
    assert keys(store) == ["shared"]
