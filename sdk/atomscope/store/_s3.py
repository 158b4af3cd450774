"""Any S3-compatible store, through boto3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from atomscope.store._interface import (
    ObjectInfo,
    ObjectNotFound,
    StoreError,
    check_key,
    check_prefix,
    check_range,
)
from atomscope.store._s3_client import MIB, S3Settings, is_broken_stream, make_clients, told, transfer

_DELETE_BATCH = 1000
"""Keys of one `DeleteObjects` request: the protocol's limit."""

_PART = 64 * MIB
"""10,000 parts of it, the protocol's limit, hold 640 GiB."""

_COPY_PART = 512 * MIB
_COPY_WHOLE = 1024 * MIB
"""Up to here one request copies an object; above, parts do, as one request may not copy over 5 GiB."""

_READ_ATTEMPTS = 3
_RANGES_AT_ONCE = 4
"""As many parts of a file are moved at once."""


class S3Store:
    """Objects under `s3://bucket/prefix`. Threads may share it; processes each open their own.

    Credentials come from boto3's own chain. Settings from the environment: `ATOMSCOPE_S3_ENDPOINT_URL`,
    `ATOMSCOPE_S3_PUBLIC_ENDPOINT_URL` (named in presigned links, where clients reach the store by another
    address), `ATOMSCOPE_S3_REGION`, `ATOMSCOPE_S3_ADDRESSING_STYLE` (`auto`, `path`, `virtual`) and
    `ATOMSCOPE_S3_CHECKSUMS` (`when_required`, the default, or `when_supported`: boto3's own default
    sends checksums that several compatible servers refuse).
    """

    def __init__(self, bucket: str, prefix: str = "", settings: S3Settings | None = None) -> None:
        """Open the store; nothing is sent yet. Raises `StoreError` without boto3 or on a bad setting."""
        if not bucket:
            raise StoreError("an S3 address names a bucket: s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._client, self._signer = make_clients(settings or S3Settings.from_environment())
        self._moves = transfer(chunk=_PART, threshold=_PART)
        self._copies = transfer(chunk=_COPY_PART, threshold=_COPY_WHOLE)

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put_bytes(self, key: str, data: bytes) -> None:
        with told(key):
            self._client.put_object(**self._at(key), Body=data)

    def put_file(self, key: str, path: Path) -> None:
        at = self._at(key)
        with told(key):
            # By name rather than as a stream: parts are then read piece by piece, not into memory.
            self._client.upload_file(str(path), **at, Config=self._moves)

    def get_bytes(self, key: str) -> bytes:
        return self._body(key)

    def get_range(self, key: str, start: int, length: int) -> bytearray:
        found = bytearray(length)
        if not length:
            self.size(key)  # a range of no bytes cannot be asked for
            return found

        def fill(at: int) -> None:
            size = min(_PART, length - at)
            data = self._body(key, Range=f"bytes={start + at}-{start + at + size - 1}")
            check_range(key, len(data), start + at, size)
            found[at : at + size] = data

        with ThreadPoolExecutor(_RANGES_AT_ONCE) as threads:
            list(threads.map(fill, range(0, length, _PART)))
        return found

    def _body(self, key: str, **more: str) -> bytes:
        """The body of an object, asked for again when it breaks off."""
        asked = {**self._at(key), **more}
        with told(key):
            for _ in range(_READ_ATTEMPTS - 1):
                try:
                    return bytes(self._client.get_object(**asked)["Body"].read())
                except Exception as error:
                    if not is_broken_stream(error):
                        raise
            return bytes(self._client.get_object(**asked)["Body"].read())

    def get_file(self, key: str, path: Path) -> None:
        at = self._at(key)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            with told(key):
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("xb") as sink:
                    self._client.download_fileobj(**at, Fileobj=sink, Config=self._moves)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def open_read(self, key: str) -> BinaryIO:
        with told(key):
            body = self._client.get_object(**self._at(key))["Body"]
        return cast("BinaryIO", BufferedReader(_Body(key, body), MIB))

    def copy(self, source: str, target: str) -> None:
        origin, at = self._at(source), self._at(target)
        if source == target:
            self.size(source)  # S3 refuses to copy an object onto itself
            return
        with told(source):
            self._client.copy(origin, **at, Config=self._copies)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        with told(key):
            return int(self._client.head_object(**self._at(key))["ContentLength"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{check_prefix(prefix)}"
        )
        return self._listed(prefix, pages)

    def _listed(self, prefix: str, pages: Any) -> Iterator[ObjectInfo]:  # noqa: ANN401  (boto3 is untyped)
        with told(prefix):
            found = [
                ObjectInfo(key=item["Key"].removeprefix(self._prefix), size=int(item["Size"]))
                for page in pages
                for item in page.get("Contents", [])
            ]
        # Some compatible servers list folder by folder, which is not by key (`a/c` before `a-b/c`).
        yield from sorted(found, key=lambda item: item.key)

    def delete(self, key: str) -> None:
        with told(key):
            self._client.delete_object(**self._at(key))

    def delete_prefix(self, prefix: str) -> int:
        if not prefix.endswith("/"):
            raise StoreError(f"a prefix to delete ends in '/': {prefix!r}")
        keys = [f"{self._prefix}{item.key}" for item in self.list(prefix)]
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": key} for key in keys[start : start + _DELETE_BATCH]]
            with told(prefix):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True}
                )
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise StoreError(f"the store did not delete {first.get('Key')!r}: {first.get('Code')}")
        return len(keys)

    def local_path(self, key: str) -> Path | None:
        check_key(key.removesuffix("/"))
        return None

    # ------------------------------------------------ what the service's uploads and links need

    def presign_get(self, key: str, expires: int, filename: str | None = None) -> str:
        """A link that gives the object to whoever holds it, for `expires` seconds, saved as `filename`."""
        wanted = self._at(key)
        if filename is not None:
            # Percent-encoded (RFC 6266), so that no character of a name can end the header or add one.
            wanted["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        with told(key):
            return str(self._signer.generate_presigned_url("get_object", Params=wanted, ExpiresIn=expires))

    def create_multipart(self, key: str) -> str:
        """Begin a multipart upload; its id."""
        with told(key):
            return str(self._client.create_multipart_upload(**self._at(key))["UploadId"])

    def presign_part(self, key: str, upload_id: str, number: int, expires: int) -> str:
        """A link to `PUT` part `number` (from 1) to, for `expires` seconds."""
        wanted = {**self._at(key), "UploadId": upload_id, "PartNumber": number}
        with told(key):
            return str(self._signer.generate_presigned_url("upload_part", Params=wanted, ExpiresIn=expires))

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts, given as (number, ETag) in rising order.

        Raises `ObjectNotFound` when the upload is gone, `StoreError` when a part is missing or differs.
        """
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        with told(key):
            self._client.complete_multipart_upload(
                **self._at(key), UploadId=upload_id, MultipartUpload={"Parts": listed}
            )

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drop the parts; nothing happens when the upload is gone already."""
        try:
            with told(key):
                self._client.abort_multipart_upload(**self._at(key), UploadId=upload_id)
        except ObjectNotFound:
            return

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{check_key(key)}"}


class _Body(RawIOBase):
    """A response's body as a raw stream, its network errors told as `StoreError`."""

    def __init__(self, key: str, body: Any) -> None:  # noqa: ANN401  (botocore is untyped)
        self._object = key
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401  (any writable buffer)
        with told(self._object):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()
