"""Any S3-compatible store, through boto3."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from atomscope.store._interface import ObjectInfo, ObjectNotFound, StoreError, check_key

_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_DELETE_BATCH = 1000
"""Keys of one `DeleteObjects` request: the protocol's limit."""


class S3Store:
    """Objects under `s3://bucket/prefix`.

    Credentials come from boto3's own chain. Settings from the environment: `ATOMSCOPE_S3_ENDPOINT_URL`,
    `ATOMSCOPE_S3_REGION`, `ATOMSCOPE_S3_ADDRESSING_STYLE` (`auto`, `path`, `virtual`) and
    `ATOMSCOPE_S3_CHECKSUMS` (`when_required`, the default, or `when_supported`: boto3's own default
    sends checksums that several compatible servers refuse).
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        if not bucket:
            raise StoreError("an S3 address names a bucket: s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._client = _client()

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put_bytes(self, key: str, data: bytes) -> None:
        with _told(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def put_file(self, key: str, path: Path) -> None:
        with _told(key):
            self._client.upload_file(str(path), self._bucket, self._key(key))

    def get_bytes(self, key: str) -> bytes:
        with self.open_read(key) as source:
            return source.read()

    def get_file(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            with _told(key):
                self._client.download_file(self._bucket, self._key(key), str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def open_read(self, key: str) -> BinaryIO:
        with _told(key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
        return cast("BinaryIO", BufferedReader(_Body(key, body), 1 << 20))

    def copy(self, source: str, target: str) -> None:
        with _told(source):
            # boto3's managed copy turns into a multipart copy past the protocol's 5 GiB.
            self._client.copy(
                {"Bucket": self._bucket, "Key": self._key(source)}, self._bucket, self._key(target)
            )

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        with _told(key):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{_checked_prefix(prefix)}"
        )
        with _told(prefix):
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(key=item["Key"].removeprefix(self._prefix), size=int(item["Size"]))

    def delete(self, key: str) -> None:
        with _told(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def delete_prefix(self, prefix: str) -> int:
        if not prefix.endswith("/"):
            raise StoreError(f"a prefix to delete ends in '/': {prefix!r}")
        keys = [item.key for item in self.list(prefix)]
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": self._key(key)} for key in keys[start : start + _DELETE_BATCH]]
            with _told(prefix):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True}
                )
            if answer.get("Errors"):
                raise StoreError(f"the store did not delete {answer['Errors'][0].get('Key')!r}")
        return len(keys)

    def local_path(self, key: str) -> Path | None:
        return None

    # ------------------------------------------------ what the service's uploads and links need

    def presign_get(self, key: str, expires: int, filename: str | None = None) -> str:
        """A link that gives the object to whoever holds it, for `expires` seconds."""
        wanted: dict[str, str] = {"Bucket": self._bucket, "Key": self._key(key)}
        if filename is not None:
            wanted["ResponseContentDisposition"] = f'attachment; filename="{check_key(filename)}"'
        with _told(key):
            return str(self._client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=expires))

    def create_multipart(self, key: str) -> str:
        """Begin a multipart upload; its id."""
        with _told(key):
            return str(
                self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key(key))["UploadId"]
            )

    def presign_part(self, key: str, upload_id: str, number: int, expires: int) -> str:
        """A link to `PUT` part `number` (from 1) to, for `expires` seconds."""
        wanted = {"Bucket": self._bucket, "Key": self._key(key), "UploadId": upload_id, "PartNumber": number}
        with _told(key):
            return str(self._client.generate_presigned_url("upload_part", Params=wanted, ExpiresIn=expires))

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts, given as (number, ETag) in rising order."""
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        with _told(key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key(key), UploadId=upload_id, MultipartUpload={"Parts": listed}
            )

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drop the parts; nothing happens when the upload is gone already."""
        try:
            with _told(key):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(key), UploadId=upload_id
                )
        except ObjectNotFound:
            return

    def _key(self, key: str) -> str:
        return f"{self._prefix}{check_key(key)}"


class _Body(RawIOBase):
    """A response's body as a raw stream, its network errors told as `StoreError`."""

    def __init__(self, key: str, body: Any) -> None:  # noqa: ANN401  (botocore is untyped)
        self._object = key
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401  (any writable buffer)
        with _told(self._object):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def _checked_prefix(prefix: str) -> str:
    check_key(prefix.rstrip("/"))
    return prefix


def _client() -> Any:  # noqa: ANN401  (boto3 is untyped)
    try:
        import boto3  # noqa: PLC0415  (an extra: the core wheel works without it)
        from botocore.config import Config  # noqa: PLC0415
    except ImportError as error:
        raise StoreError("S3 needs boto3: pip install 'atomscope[s3]'") from error
    checksums = os.environ.get("ATOMSCOPE_S3_CHECKSUMS", "when_required")
    style = os.environ.get("ATOMSCOPE_S3_ADDRESSING_STYLE", "auto")
    for name, value, accepted in (
        ("ATOMSCOPE_S3_CHECKSUMS", checksums, ("when_required", "when_supported")),
        ("ATOMSCOPE_S3_ADDRESSING_STYLE", style, ("auto", "path", "virtual")),
    ):
        if value not in accepted:
            raise StoreError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")
    return boto3.client(
        "s3",
        endpoint_url=os.environ.get("ATOMSCOPE_S3_ENDPOINT_URL") or None,
        region_name=os.environ.get("ATOMSCOPE_S3_REGION") or None,
        config=Config(
            signature_version="s3v4",
            retries={"mode": "standard", "max_attempts": 5},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            s3={"addressing_style": style},
            connect_timeout=10,
            read_timeout=60,
        ),
    )


@contextmanager
def _told(key: str) -> Generator[None]:
    """Turn what boto3 raises into the store's own exceptions."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError  # noqa: PLC0415

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise ObjectNotFound(f"no object {key!r}") from error
        raise StoreError(f"the store refused object {key!r}: {code or error}") from error
    except (BotoCoreError, Boto3Error, HTTPClientError) as error:
        raise StoreError(f"the store failed on object {key!r}: {error}") from error
