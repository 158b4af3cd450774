"""Sending files by parts, a block at a time in memory, and finding what need not be sent."""

from __future__ import annotations

import re
from pathlib import Path

from atomscope.client._service import Service
from atomscope.client._wire import FileSlice, Request, parse
from atomscope.errors import APIError, PermissionDeniedError, UsageError
from atomscope.input_files import (
    ADAPTER_FILES,
    ADAPTER_TEMPLATE,
    DATASET_ENDINGS,
    dataset_format,
    file_digest,
    folder_digest,
    is_model_file,
)
from atomscope.types.inputs import (
    CompletedFile,
    CompletedPart,
    Upload,
    UploadComplete,
    UploadCreate,
    UploadFileSpec,
    UploadPart,
    UploadPurpose,
)

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TRAINER_STATE = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state).*\.(pt|pth|bin)")
_COMPLETE_SECONDS = 120.0
_COMPLETE_BYTES_PER_SECOND = 20e6
"""A service reads every byte again to check the digests before it answers; this is a slow one."""


def files_for(purpose: UploadPurpose, path: Path) -> list[Path]:
    """The files of `path` that an upload of this purpose takes; raises `UsageError`."""
    if purpose == "dataset":
        if not path.is_file() or dataset_format(path.name) is None:
            raise UsageError(f"a data set is a file that ends in {', '.join(DATASET_ENDINGS)}, not {path}")
        return [path]
    if not path.is_dir():
        raise UsageError(f"a {purpose} is a folder, not {path}")
    if purpose == "adapter":
        wanted = {*ADAPTER_FILES, *([ADAPTER_TEMPLATE] if (path / ADAPTER_TEMPLATE).is_file() else [])}
        missing = [name for name in sorted(ADAPTER_FILES) if not (path / name).is_file()]
    else:
        names = {file.name for file in path.iterdir() if file.is_file()}
        wanted = {name for name in names if is_model_file(name)}
        missing = ["config.json"] if "config.json" not in wanted else []
        if not any(name.endswith(".safetensors") for name in wanted):
            missing.append(".safetensors file")
    if missing:
        raise UsageError(
            f"{path} is no {purpose} that can be audited: it has no {' and no '.join(missing)}"
            + _advice(path)
        )
    return [path / name for name in sorted(wanted)]


def _advice(folder: Path) -> str:
    """What to do about missing weights, by what lies in the folder; what a trainer left there is no sign."""
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(_PICKLES) and not _TRAINER_STATE.fullmatch(name) for name in names):
        return "; pickled weights are never loaded: save them as safetensors"
    inner = [name for name in names if (folder / name / "adapter_model.safetensors").is_file()]
    return f"; there is one in {' and in '.join(inner[:3])}" if inner else ""


async def describe(service: Service, purpose: UploadPurpose, files: list[Path]) -> list[UploadFileSpec]:
    """Names, sizes and digests of the files."""
    specs: list[UploadFileSpec] = []
    for file in files:
        # A data set may be called anything here; the service asks for a plain name.
        name = f"data.{dataset_format(file.name)}" if purpose == "dataset" else file.name
        sha256 = await service.work(lambda file=file: file_digest(file))
        specs.append(UploadFileSpec(path=name, size=file.stat().st_size, sha256=sha256))
    return specs


def content_digest(purpose: UploadPurpose, specs: list[UploadFileSpec]) -> str:
    """What `sha256` of the resource made of these files will be."""
    if purpose == "dataset":
        return specs[0].sha256
    return folder_digest({spec.path: spec.sha256 for spec in specs})


async def upload(
    service: Service, purpose: UploadPurpose, files: list[Path], specs: list[UploadFileSpec]
) -> Upload:
    """Send the files that `specs` describes; the completed upload. Raises `APIError` as the service does,
    and `InvalidInput` when a file changes on the way."""
    body = UploadCreate(purpose=purpose, files=specs)
    created = parse(await service.send(Request("POST", "v1/uploads", body=body)), Upload)
    local = {spec.path: file for spec, file in zip(specs, files, strict=True)}
    if sorted(file.path for file in created.files) != sorted(local):
        raise APIError(f"upload {created.id} does not list the files that were announced")
    completed: list[CompletedFile] = []
    for remote in created.files:
        parts = [
            await _send_part(service, created.id, remote.path, part, local[remote.path])
            for part in remote.parts
        ]
        completed.append(CompletedFile(path=remote.path, parts=parts))
    size = sum(spec.size for spec in specs)
    request = Request(
        "POST",
        f"v1/uploads/{created.id}/complete",
        body=UploadComplete(files=completed),
        read_timeout=_COMPLETE_SECONDS + size / _COMPLETE_BYTES_PER_SECOND,
    )
    return parse(await service.send(request), Upload)


async def _send_part(
    service: Service, upload_id: str, name: str, part: UploadPart, file: Path
) -> CompletedPart:
    content = FileSlice(file, part.offset, part.size)
    try:
        reply = await service.put(part.url, content)
    except PermissionDeniedError:
        # Links expire while a large model is on its way; reading the upload signs new ones.
        request = Request("GET", f"v1/uploads/{upload_id}")
        fresh = parse(await service.send(request), Upload)
        url = _url_of(fresh, name, part.number)
        if url is None or url == part.url:
            raise
        reply = await service.put(url, content)
    etag = reply.headers.get("etag")
    if etag is None:
        raise APIError(f"part {part.number} of {name} was answered without an ETag")
    return CompletedPart(number=part.number, etag=etag)


def _url_of(fresh: Upload, name: str, number: int) -> str | None:
    for file in fresh.files:
        for part in file.parts:
            if file.path == name and part.number == number:
                return part.url
    return None
