"""What only S3 has: settings, presigned links, multipart uploads, a server that fails."""

from __future__ import annotations

import filecmp
import hashlib
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from atomscope.store import ObjectNotFound, StoreError, open_store
from atomscope.store._s3 import _PART, S3Store
from tests.fixtures.s3 import S3Server


def test_objects_lie_under_the_prefix_of_the_address(s3_store: S3Store, s3_server: S3Server) -> None:
    s3_store.put_bytes("a/b", b"x")
    bucket = s3_store.uri.removeprefix("s3://").partition("/")[0]
    found = s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"] for item in found] == ["tests/here/a/b"]


def test_a_store_without_a_prefix_begins_at_the_bucket(s3_environment: S3Server) -> None:
    store = open_store(f"s3://{s3_environment.new_bucket()}")
    store.put_bytes("a/b", b"x")
    assert [item.key for item in store.list("")] == ["a/b"]
    assert store.delete_prefix("a/") == 1


def test_more_objects_than_one_page_are_listed_and_deleted(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(s3_environment.new_bucket())
    pages: list[int] = []

    def ten_a_page(params: dict[str, object], **_: object) -> None:
        params["MaxKeys"] = 10
        pages.append(10)

    store._client.meta.events.register("provide-client-params.s3.ListObjectsV2", ten_a_page)
    monkeypatch.setattr("atomscope.store._s3._DELETE_BATCH", 10)
    names = [f"many/{number:04d}" for number in range(25)]
    for name in names:
        store.put_bytes(name, b"")
    assert [item.key for item in store.list("many/")] == names
    assert len(pages) == 3
    assert store.delete_prefix("many/") == 25
    assert list(store.list("")) == []


def test_a_presigned_link_gives_the_object_under_its_name(s3_store: S3Store) -> None:
    s3_store.put_bytes("a/b", b"content")
    answer = httpx.get(s3_store.presign_get("a/b", 60, filename='né"w\r\nX-Bad: 1.bin'))
    assert answer.status_code == 200
    assert answer.content == b"content"
    assert answer.headers["content-disposition"] == (
        "attachment; filename*=UTF-8''n%C3%A9%22w%0D%0AX-Bad%3A%201.bin"
    )
    assert "x-bad" not in answer.headers


def test_a_presigned_link_is_good_for_its_object_and_time_only(s3_store: S3Store) -> None:
    s3_store.put_bytes("a", b"content")
    s3_store.put_bytes("b", b"other")
    link = s3_store.presign_get("a", 77)
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["77"]
    assert httpx.get(link.replace("/a?", "/b?")).status_code == 403
    assert httpx.put(link, content=b"changed").status_code == 403
    assert s3_store.get_bytes("a") == b"content"


def test_links_name_the_public_endpoint(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMSCOPE_S3_PUBLIC_ENDPOINT_URL", "https://files.example.org")
    store = open_store(f"s3://{s3_environment.new_bucket()}")
    assert isinstance(store, S3Store)
    store.put_bytes("a", b"through the inner address")
    assert store.presign_get("a", 60).startswith("https://files.example.org/")
    assert store.presign_part("a", "id", 1, 60).startswith("https://files.example.org/")


def test_an_upload_in_parts_joins_them_in_order(s3_store: S3Store) -> None:
    parts = [bytes([1]) * (5 << 20), bytes([2]) * (5 << 20), b"end"]
    upload = s3_store.create_multipart("up/load")
    etags: list[tuple[int, str]] = []
    for number in (3, 1, 2):  # in any order
        answer = httpx.put(s3_store.presign_part("up/load", upload, number, 60), content=parts[number - 1])
        assert answer.status_code == 200
        etags.append((number, answer.headers["etag"]))
    assert not s3_store.exists("up/load")
    s3_store.complete_multipart("up/load", upload, sorted(etags))
    with s3_store.open_read("up/load") as stream:
        assert hashlib.file_digest(stream, "sha256").digest() == hashlib.sha256(b"".join(parts)).digest()


def _large(folder: Path) -> Path:
    """One byte more than a part, told apart by their ends."""
    path = folder / "large"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(_PART)
        file.write(b"e")
    return path


def test_a_large_file_goes_in_parts_and_comes_back_whole(s3_store: S3Store, tmp_path: Path) -> None:
    source = _large(tmp_path)
    s3_store.put_file("large", source)
    head = s3_store._client.head_object(**s3_store._at("large"))
    assert head["ETag"].strip('"').endswith("-2")
    s3_store.get_file("large", tmp_path / "back")
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
    s3_store.put_file("small", _small(tmp_path))
    assert "-" not in s3_store._client.head_object(**s3_store._at("small"))["ETag"]


def _small(folder: Path) -> Path:
    (folder / "small").write_bytes(b"small")
    return folder / "small"


def test_an_empty_file_is_one_empty_part(s3_store: S3Store) -> None:
    upload = s3_store.create_multipart("empty")
    answer = httpx.put(s3_store.presign_part("empty", upload, 1, 60), content=b"")
    s3_store.complete_multipart("empty", upload, [(1, answer.headers["etag"])])
    assert s3_store.size("empty") == 0


def test_a_wrong_part_is_refused_and_nothing_appears(s3_store: S3Store) -> None:
    upload = s3_store.create_multipart("up")
    httpx.put(s3_store.presign_part("up", upload, 1, 60), content=b"x").raise_for_status()
    with pytest.raises(StoreError) as raised:
        s3_store.complete_multipart("up", upload, [(1, '"00000000000000000000000000000000"')])
    assert not isinstance(raised.value, ObjectNotFound)
    assert not s3_store.exists("up")
    s3_store.abort_multipart("up", upload)


def test_an_aborted_upload_cannot_be_completed(s3_store: S3Store) -> None:
    upload = s3_store.create_multipart("up")
    answer = httpx.put(s3_store.presign_part("up", upload, 1, 60), content=b"x")
    s3_store.abort_multipart("up", upload)
    s3_store.abort_multipart("up", upload)
    with pytest.raises(ObjectNotFound):
        s3_store.complete_multipart("up", upload, [(1, answer.headers["etag"])])
    assert not s3_store.exists("up")


def test_wrong_keys_are_told(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_environment.new_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{bucket}")
    with pytest.raises(StoreError, match=r"SignatureDoesNotMatch|403") as raised:
        store.get_bytes("a")
    assert not isinstance(raised.value, ObjectNotFound)
    with pytest.raises(StoreError):
        store.exists("a")


def test_a_missing_bucket_is_no_missing_object(s3_environment: S3Server) -> None:
    store = open_store("s3://there-is-no-such-bucket")
    with pytest.raises(StoreError, match="NoSuchBucket") as raised:
        store.get_bytes("a")
    assert not isinstance(raised.value, ObjectNotFound)
    with pytest.raises(StoreError, match="NoSuchBucket"):
        list(store.list(""))


class Breaking(BaseHTTPRequestHandler):
    """Answers as S3, but sends only half of the body the first `failures` times."""

    failures = 0
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        if type(self).failures:
            type(self).failures -= 1
            self.wfile.write(b"01234")
            self.close_connection = True
        else:
            self.wfile.write(b"0123456789")

    def log_message(self, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def breaking_store(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    Breaking.failures = Breaking.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("ATOMSCOPE_S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield S3Store("bucket")
        finally:
            server.shutdown()
            thread.join()


def test_a_body_that_breaks_off_is_asked_for_again(breaking_store: S3Store) -> None:
    Breaking.failures = 2
    assert breaking_store.get_bytes("a") == b"0123456789"
    assert Breaking.asked == 3


def test_a_body_that_keeps_breaking_off_is_told(breaking_store: S3Store) -> None:
    Breaking.failures = 100
    with pytest.raises(StoreError, match="'a'"):
        breaking_store.get_bytes("a")
    assert Breaking.asked == 3
    with breaking_store.open_read("a") as stream, pytest.raises(StoreError, match="'a'"):
        stream.read()


def test_a_server_that_is_not_there_is_told(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATOMSCOPE_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between boto3's attempts
    store = open_store("s3://bucket")
    with pytest.raises(StoreError, match="the store failed"):
        store.get_bytes("a")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="the store failed"):
        store.put_file("a", tmp_path / "file")


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_checksums_are_a_setting(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, checksums: str
) -> None:
    monkeypatch.setenv("ATOMSCOPE_S3_CHECKSUMS", checksums)
    store = S3Store(s3_environment.new_bucket())
    sent: list[dict[str, str]] = []
    store._client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    store.put_bytes("a", b"x")
    assert store.get_bytes("a") == b"x"
    carried = any("x-amz-checksum" in name.lower() or "x-amz-trailer" in name.lower() for name in sent[0])
    assert carried == (checksums == "when_supported")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATOMSCOPE_S3_CHECKSUMS", "never"),
        ("ATOMSCOPE_S3_ADDRESSING_STYLE", "sideways"),
        ("ATOMSCOPE_S3_ENDPOINT_URL", "not a url"),
    ],
)
def test_a_bad_setting_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=value):
        open_store("s3://bucket")


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match=r"pip install 'atomscope\[s3\]'"):
        open_store("s3://bucket")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "relative/path",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../up",
        "s3://bucket/a//b",
        "s3://bucket/a?region=x",
        "file://host/folder",
        "file:relative",
        "file://",
        "https://example.org/a",
        "C:\\folder",
        "s3://[bad/",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(StoreError):
        open_store(address)
