"""The inputs of `--local`, which are paths: what they hold, by digest, and the spec that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from atomscope.cli.registry import LocalRun
from atomscope.errors import InvalidInput
from atomscope.input_files import (
    ADAPTER_FILES,
    ADAPTER_TEMPLATE,
    dataset_format,
    file_digest,
    folder_digest,
    is_adapter_file,
    is_model_file,
    is_own_file,
)
from atomscope.types.spec import AuditSpec, InputRef

LOCAL_PROJECT = "prj_local"


def local_spec(request: LocalRun) -> AuditSpec:
    """The spec of a local audit; its id follows from the content of its inputs and its settings.

    Raises `InvalidInput` when a path is missing.
    """
    base = input_folder(request.base_model, "base model", is_model_file)
    adapter = adapter_folder(request.adapter)
    dataset = request.dataset.expanduser().absolute()
    if not dataset.is_file():
        raise InvalidInput("bad_path", f"no such data set: {request.dataset}")
    data = InputRef(
        id="local",
        location=str(dataset),
        sha256=file_digest(dataset),
        size=dataset.stat().st_size,
        name=dataset.name,
    )
    key = folder_digest(
        {
            "base": base.sha256,
            "adapter": adapter.sha256,
            "data": data.sha256,
            "format": f".{dataset_format(dataset.name)}",
            "config": msgspec.json.encode(request.config).hex(),
        }
    )
    return AuditSpec(
        audit_id=f"local_{key[:32]}",
        project_id=LOCAL_PROJECT,
        base_model=base,
        adapter=adapter,
        dataset=data,
        config=request.config,
    )


def adapter_folder(path: Path) -> InputRef:
    """An adapter of `--local`. Raises as `input_folder` does."""
    optional = path.expanduser() / ADAPTER_TEMPLATE
    return input_folder(
        path, "adapter", is_adapter_file if is_own_file(optional) else ADAPTER_FILES.__contains__
    )


def input_folder(path: Path, what: str, belongs: Callable[[str], bool]) -> InputRef:
    """A folder of `--local`; its digest is that of the files that belong to it, as in the service.

    Raises `InvalidInput` (`bad_path`) when there is none.
    """
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        raise InvalidInput("bad_path", f"no such {what} folder: {path}")
    files = {file.name: file for file in sorted(folder.iterdir()) if belongs(file.name)}
    return InputRef(
        id="local",
        location=str(folder),
        sha256=folder_digest({name: file_digest(file) for name, file in files.items()}),
        size=sum(file.stat().st_size for file in files.values()),
        name=folder.name,
    )
