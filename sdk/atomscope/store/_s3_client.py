"""boto3 for `S3Store`: how its client is set up, and how its errors are told."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import msgspec

from atomscope.store._interface import ObjectNotFound, StoreError

MIB = 1 << 20
_MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})


class S3Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach an S3-compatible store. Credentials are not here: boto3's own chain finds them."""

    endpoint_url: str | None = None
    """None: Amazon's."""
    public_endpoint_url: str | None = None
    """Where clients reach the store, when that differs: presigned links name this one."""
    region: str | None = None
    addressing_style: str = "auto"
    checksums: str = "when_required"
    """`when_supported` is boto3's own default; it sends CRC32 sums that several compatible servers refuse."""

    @classmethod
    def from_environment(cls) -> S3Settings:
        """Read `ATOMSCOPE_S3_*`; raise `StoreError` on a value that is not accepted."""
        return cls(
            endpoint_url=os.environ.get("ATOMSCOPE_S3_ENDPOINT_URL") or None,
            public_endpoint_url=os.environ.get("ATOMSCOPE_S3_PUBLIC_ENDPOINT_URL") or None,
            region=os.environ.get("ATOMSCOPE_S3_REGION") or None,
            addressing_style=_choice("ATOMSCOPE_S3_ADDRESSING_STYLE", ("auto", "path", "virtual")),
            checksums=_choice("ATOMSCOPE_S3_CHECKSUMS", ("when_required", "when_supported")),
        )


def _choice(name: str, accepted: tuple[str, ...]) -> str:
    """The setting `name`; the first of `accepted` where it is unset."""
    value = os.environ.get(name) or accepted[0]
    if value not in accepted:
        raise StoreError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")
    return value


def make_clients(settings: S3Settings) -> tuple[Any, Any]:
    """The client for work and the one that signs links (the same one, unless there is a public endpoint)."""
    try:
        from boto3 import Session  # noqa: PLC0415  (an extra: the core wheel works without it)
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ImportError as error:
        raise StoreError("S3 needs boto3: pip install 'atomscope[s3]'") from error
    config = Config(
        # Links signed by the older version, boto3's choice in some regions, are refused by many servers.
        signature_version="s3v4",
        retries={"mode": "standard", "max_attempts": 5},
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        s3={"addressing_style": settings.addressing_style},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=20,
    )
    try:
        session = Session()
        region = settings.region or session.region_name or "us-east-1"

        def client(endpoint: str | None) -> Any:  # noqa: ANN401  (boto3 is untyped)
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)

        worker = client(settings.endpoint_url)
        signer = client(settings.public_endpoint_url) if settings.public_endpoint_url else worker
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"the settings of the S3 store are not usable: {error}") from error
    return worker, signer


def transfer(chunk: int, threshold: int) -> Any:  # noqa: ANN401  (boto3 is untyped)
    """Settings of boto3's managed transfers: sizes in bytes, four parts at a time."""
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415

    return TransferConfig(multipart_threshold=threshold, multipart_chunksize=chunk, max_concurrency=4)


def is_broken_stream(error: BaseException) -> bool:
    """Whether a body broke off in the middle, which boto3 does not retry."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError  # noqa: PLC0415

    return isinstance(error, HTTPClientError | IncompleteReadError)


@contextmanager
def told(key: str) -> Generator[None]:
    """Turn what boto3 raises into the store's own exceptions; the cause holds the store's own code."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise ObjectNotFound(f"no object {key!r}") from error
        raise StoreError(f"the store refused object {key!r}: {code or error}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StoreError(f"the store failed on object {key!r}: {error}") from error
    except OSError as error:  # the local side of a transfer
        raise StoreError(f"cannot transfer object {key!r}: {error}") from error
