"""Folders of untrusted model files: which files may be in them, and reading their JSON within bounds."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from atomscope.errors import InputProblem, InvalidInput

MAX_CONFIG_BYTES = 4 * 2**20
"""Largest JSON configuration that is read."""

PICKLE_WEIGHTS = (
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "model*.bin",
    "*.pkl",
    "*.pickle",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.pt2",
)
"""Names under which pickled weights are kept."""

TRAINER_STATE = ("optimizer*.pt", "scheduler*.pt", "rng_state*.pth", "scaler*.pt", "training_args.bin")
"""What a trainer leaves beside the weights, and no weights."""


def refuse(code: str, message: str, *, file: str | None = None, field: str | None = None) -> InvalidInput:
    """The exception for one fault of an input; `message` says what would be accepted."""
    where = ", ".join(part for part in (file, field and f"field `{field}`") if part)
    detail = f"{where}: {message}" if where else message
    return InvalidInput(code, detail, [InputProblem(message=message, file=file, field=field)])


def check_folder(folder: Path, weights: Container[str]) -> list[str]:
    """The names of all files of `folder` (POSIX, relative, sorted), none of them opened.

    Pickled weights are let be beside a file named in `weights`, as hubs give many models: unread they do no
    harm. Raises `InvalidInput`: `missing_file` where it is no folder, `unsafe_file` for a link that leads out
    of the folder or anything that is not a regular file, `pickle_weights` where all weights are in a pickle
    format.
    """
    if not folder.is_dir():
        raise refuse(
            "missing_file", "a folder of safetensors and JSON files is expected here", file=folder.name
        )
    root = folder.resolve()
    names: list[str] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        _check_link(path, root, name)
        if path.is_dir():
            continue
        if not path.is_file():
            raise refuse("unsafe_file", "only regular files are accepted", file=name)
        names.append(name)
    if not any(name in weights for name in names):
        _refuse_pickles(names)
    return names


def _refuse_pickles(names: Iterable[str]) -> None:
    for name in names:
        base = name.rsplit("/", 1)[-1].lower()
        if any(fnmatch(base, pattern) for pattern in TRAINER_STATE):
            continue
        if any(fnmatch(base, pattern) for pattern in PICKLE_WEIGHTS):
            raise refuse(
                "pickle_weights",
                "weights in a pickle format are never read; convert them to safetensors",
                file=name,
            )


def check_plain_files(folder: Path, names: Iterable[str]) -> None:
    """Check that each of `names`, where it is there, is a regular file of `folder`; none is opened.

    Raises `InvalidInput` (`unsafe_file`) for a link that leads out of the folder and for anything else.
    """
    root = folder.resolve()
    for name in names:
        _check_link(root / name, root, name)
        if (root / name).exists() and not (root / name).is_file():
            raise refuse("unsafe_file", "only regular files are accepted", file=name)


def _check_link(path: Path, root: Path, name: str) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise refuse(
            "unsafe_file",
            "a link leads out of the folder; put the file itself in its place (`cp -rL` copies a folder so)",
            file=name,
        )


def read_json_object(folder: Path, name: str, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in `folder/name`.

    Raises `InvalidInput`: `missing_file`, or `invalid_config` where it is too large or no JSON object.
    """
    path = folder / name
    if not path.is_file():
        raise refuse("missing_file", "this file is needed and is not there", file=name)
    if path.stat().st_size > limit:
        raise refuse("invalid_config", f"at most {limit} bytes are accepted", file=name)
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise refuse("invalid_config", f"a JSON object in UTF-8 is expected ({error})", file=name) from error
    if not isinstance(value, dict):
        raise refuse("invalid_config", "a JSON object is expected", file=name)
    return value


def check_no_remote_code(folder: Path, names: list[str]) -> None:
    """Raise `InvalidInput` (`remote_code`) where a configuration asks for code of its own (`auto_map`)."""
    for name in names:
        base = name.rsplit("/", 1)[-1].lower()
        if not (base.endswith(".json") and "config" in base):
            continue
        for field, value in _walk(read_json_object(folder, name)):
            key = field.rsplit(".", 1)[-1]
            if key in ("auto_map", "custom_pipelines") and value:
                raise refuse(
                    "remote_code",
                    "code that comes with a model is never run; only architectures built into transformers "
                    "are accepted, without this field",
                    file=name,
                    field=field,
                )


def _walk(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of nested objects, with its dotted path; no recursion, since the depth is the sender's."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        prefix, item = stack.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                path = f"{prefix}.{key}" if prefix else str(key)
                yield path, inner
                stack.append((path, inner))
        elif isinstance(item, list):
            stack.extend((prefix, inner) for inner in item)
