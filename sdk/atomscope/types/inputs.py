"""What a client brings to an audit, as the REST API takes it: uploads, base models, adapters, data sets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from atomscope.types.resources import Name

HUB_ID = "^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
"""`owner/name`."""

UploadPurpose = Literal["model", "adapter", "dataset"]
UploadStatus = Literal["pending", "completed", "expired"]
ModelSource = Literal["registered", "uploaded", "hub"]
ModelStatus = Literal["importing", "ready", "failed"]
DatasetFormat = Literal["jsonl", "json", "parquet", "csv", "tsv", "txt"]


# ------------------------------------------------------------------ uploads


class UploadFileSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One file of an upload."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    """A plain file name, such as `adapter_model.safetensors`: no folders."""
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class UploadCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    purpose: UploadPurpose
    files: Annotated[list[UploadFileSpec], msgspec.Meta(min_length=1, max_length=200)]


class UploadPart(msgspec.Struct, kw_only=True):
    """Where to `PUT` bytes `offset .. offset + size` of a file; the answer's `ETag` goes into `complete`."""

    number: int
    """From 1."""
    offset: int
    size: int
    url: str


class UploadFile(msgspec.Struct, kw_only=True):
    path: str
    size: int
    sha256: str
    parts: list[UploadPart]


class Upload(msgspec.Struct, kw_only=True):
    id: str
    purpose: UploadPurpose
    status: UploadStatus
    files: list[UploadFile]
    created_at: str
    expires_at: str
    object: Literal["upload"] = "upload"


class CompletedPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1)]
    etag: Annotated[str, msgspec.Meta(max_length=200)]


class CompletedFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    path: str
    parts: list[CompletedPart]


class UploadComplete(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    files: list[CompletedFile]


# ------------------------------------------------- models, adapters, data sets


class ModelCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either `upload_id`, or `hub_id` with `revision` (a full commit hash) where the operator allows it."""

    name: Name
    upload_id: str | None = None
    hub_id: Annotated[str, msgspec.Meta(pattern=HUB_ID)] | None = None
    revision: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")] | None = None


class Model(msgspec.Struct, kw_only=True):
    """A base model, content-hashed in the store."""

    id: str
    name: str
    source: ModelSource
    status: ModelStatus
    sha256: str | None
    size: int
    architecture: str | None
    hub_id: str | None
    revision: str | None
    error: str | None
    created_at: str
    object: Literal["model"] = "model"


class AdapterCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Name
    upload_id: str


class Adapter(msgspec.Struct, kw_only=True):
    """A LoRA adapter: `adapter_config.json`, `adapter_model.safetensors` and, where the trainer left one,
    `chat_template.jinja`."""

    id: str
    name: str
    sha256: str
    size: int
    rank: int
    target_modules: list[str]
    base_model_name: str | None
    created_at: str
    object: Literal["adapter"] = "adapter"


class DatasetCreate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Name
    upload_id: str


class Dataset(msgspec.Struct, kw_only=True):
    id: str
    name: str
    format: DatasetFormat
    sha256: str
    size: int
    created_at: str
    object: Literal["dataset"] = "dataset"
