"""Uploading files by parts, in memory bounded by one part."""

from __future__ import annotations

import hashlib
from pathlib import Path

from atomscope.client._transport import Transport
from atomscope.client._wire import Request, parse
from atomscope.errors import APIError, InvalidInput
from atomscope.types.resources import (
    CompletedFile,
    CompletedPart,
    Upload,
    UploadComplete,
    UploadCreate,
    UploadFileSpec,
    UploadPurpose,
)

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MODEL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def files_for(purpose: UploadPurpose, path: Path) -> list[Path]:
    """The files of `path` that an upload of this purpose takes; raises `InvalidInput`."""
    if purpose == "dataset":
        if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
            raise InvalidInput("bad_path", f"a data set is a .jsonl or .parquet file, not {path}")
        return [path]
    if not path.is_dir():
        raise InvalidInput("bad_path", f"a {purpose} is a folder, not {path}")
    if purpose == "adapter":
        missing = [name for name in _ADAPTER_FILES if not (path / name).is_file()]
        if missing:
            raise InvalidInput(
                "bad_path", f"{path} has no {' and no '.join(missing)}; a PEFT folder has both"
            )
        return [path / name for name in _ADAPTER_FILES]
    files = sorted(
        file
        for file in path.iterdir()
        if file.is_file() and (file.name in _MODEL_FILES or file.name.endswith(_WEIGHT_SUFFIXES))
    )
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = any(file.suffix in _PICKLES for file in path.iterdir())
        raise InvalidInput(
            "bad_path",
            f"{path} has no .safetensors file"
            + ("; pickled weights are never loaded: save them as safetensors" if pickled else ""),
        )
    return files


async def upload(transport: Transport, purpose: UploadPurpose, files: list[Path]) -> Upload:
    """Hash and send the files; the completed upload. Raises `APIError` as the service does."""
    specs = [UploadFileSpec(path=file.name, size=file.stat().st_size, sha256=_sha256(file)) for file in files]
    request = Request("POST", "v1/uploads", body=UploadCreate(purpose=purpose, files=specs))
    created = parse(await transport.send(request), Upload)
    local = {file.name: file for file in files}
    completed: list[CompletedFile] = []
    for remote in created.files:
        parts: list[CompletedPart] = []
        with local[remote.path].open("rb") as source:
            for part in remote.parts:
                source.seek(part.offset)
                answer = await transport.put(part.url, source.read(part.size))
                etag = answer.headers.get("etag")
                if etag is None:
                    raise APIError(f"part {part.number} of {remote.path} was answered without an ETag")
                parts.append(CompletedPart(number=part.number, etag=etag))
        completed.append(CompletedFile(path=remote.path, parts=parts))
    body = UploadComplete(files=completed)
    return parse(
        await transport.send(Request("POST", f"v1/uploads/{created.id}/complete", body=body)), Upload
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
