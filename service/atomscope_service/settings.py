"""The settings of the API and the control worker, read from `ATOMSCOPE_*` environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from atomscope.errors import AtomscopeError

PREFIX = "ATOMSCOPE_"

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class SettingsError(AtomscopeError):
    """One or more settings are missing or wrong; the message names each variable."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """Settings of the service. A field `max_rows` is read from `ATOMSCOPE_MAX_ROWS`.

    Sizes are in bytes, times in seconds. `docs/deployment.md` lists them all.
    """

    database_url: str
    """`sqlite:////folder/atomscope.db` or `postgresql+psycopg://user:password@host/database`."""
    store: str
    """`file:///folder` or `s3://bucket/prefix`; the S3 variables are read by `atomscope.store`."""
    broker_url: str
    """`redis://:password@host:6379/0` or `redis+socket:///path?virtual_host=0`."""
    secret_file: Path
    """File with at least 32 bytes of secret: API keys are hashed and links and cursors signed with it."""
    base_url: str = "http://127.0.0.1:8321"
    """Where clients reach the API, the base of signed links; by default the host and port below."""
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8321
    hub_import: bool = False
    """Whether `POST /v1/models` may bring models from a hub."""
    max_json_bytes: Positive = 1 * MiB
    max_dataset_bytes: Positive = 2 * GiB
    max_adapter_bytes: Positive = 8 * GiB
    max_model_bytes: Positive = 200 * GiB
    max_rows: Positive = 2_000_000
    """Rows of a data set; an audit over more fails with `too_many_rows`."""
    max_steering_bytes: Positive = 4 * GiB
    """Bytes of the adapter and the vectors together that one request for a steered adapter may load."""
    part_bytes: Annotated[int, msgspec.Meta(ge=5 * MiB, le=5 * GiB)] = 64 * MiB
    """Size of an upload's parts (the last may be shorter). S3 accepts 5 MiB to 5 GiB."""
    upload_seconds: Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400)] = 86_400.0
    """How long an upload stays open and its part URLs valid."""
    link_seconds: Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400)] = 3_600.0
    """How long a download link is valid."""
    gradient_days: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Days after an audit's end when its gradients expire; 0: never. All else of it stays."""
    idempotency_seconds: Seconds = 86_400.0
    """How long the answer to an `Idempotency-Key` is kept."""
    event_poll_seconds: Seconds = 0.5
    """How often an event stream looks for new rows."""
    event_heartbeat_seconds: Seconds = 15.0
    """Longest silence on an event stream; a comment fills it."""
    heartbeat_seconds: Seconds = 10.0
    """How often a pipeline worker renews the lease of its unit; a quarter of the lease if that is shorter."""
    lease_seconds: Seconds = 60.0
    """How long a lease lasts without a heartbeat."""
    queued_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """After how long the message of a queued unit is looked for in the broker; 0 is half a lease."""
    sweep_seconds: Seconds = 5.0
    """How often the control worker looks for expired leases, deletions and uploads."""
    max_fences: Positive = 5
    """Times a unit is sent before its audit fails."""


def queued_seconds(settings: Settings) -> float:
    """After how long a queued unit's message is looked for: `ATOMSCOPE_QUEUED_SECONDS`, else half a lease."""
    return settings.queued_seconds or settings.lease_seconds / 2


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment; raises `SettingsError` that names every fault at once.

    Variables of other parts of Atomscope share the prefix, so unknown names are left alone.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(Settings):
        variable = PREFIX + field.name.upper()
        text = environ.get(variable, "")
        if not text:
            if field.default is msgspec.NODEFAULT:
                faults.append(f"{variable} is not set")
            continue
        try:
            values[field.name] = msgspec.convert(text, field.type, strict=False, dec_hook=_decode)
        except msgspec.ValidationError as error:
            faults.append(f"{variable}={_shown(field.name, text)}: {error}")
    faults.extend(_cross_checks(values))
    if faults:
        raise SettingsError("; ".join(faults))
    if "base_url" not in values:
        host, port = values.get("host", "127.0.0.1"), values.get("port", 8321)
        values["base_url"] = f"http://{host}:{port}"
    values["base_url"] = values["base_url"].rstrip("/")
    return Settings(**values)


def _decode(type_: type, value: Any) -> Any:  # noqa: ANN401
    if type_ is Path:
        return Path(value)
    raise NotImplementedError(type_)


def _shown(name: str, text: str) -> str:
    """The value in an error message; addresses may hold passwords."""
    return "..." if name in {"database_url", "broker_url"} else repr(text)


def _cross_checks(values: dict[str, Any]) -> list[str]:
    faults: list[str] = []
    schemes = {
        "database_url": ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg"),
        "store": ("file", "s3"),
        "broker_url": ("redis", "rediss", "redis+socket", "unix"),
        "base_url": ("http", "https"),
    }
    for name, allowed in schemes.items():
        if name in values and urlsplit(values[name]).scheme not in allowed:
            faults.append(
                f"{PREFIX}{name.upper()} must begin with one of {', '.join(f'{s}:' for s in allowed)}"
            )
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    heartbeat = values.get("heartbeat_seconds")
    lease = values.get("lease_seconds", defaults["lease_seconds"])
    # Left at its default, the interval follows the lease (`Scheduler.heartbeat_seconds`).
    if heartbeat is not None and lease < 2 * heartbeat:
        faults.append(
            f"{PREFIX}LEASE_SECONDS={lease:g} must be at least twice {PREFIX}HEARTBEAT_SECONDS={heartbeat:g}"
        )
    return faults
