"""The files of adapters, base models and data sets, and the digest of an input, `InputRef.sha256`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from atomscope.types.inputs import DatasetFormat

_FORMATS: dict[str, DatasetFormat] = {**{name: name for name in get_args(DatasetFormat)}, "ndjson": "jsonl"}

DATASET_ENDINGS = tuple(f".{name}" for name in _FORMATS)
"""What a data set's file may end in, in capitals or not; the ending says its format."""

ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
"""What an adapter needs."""

ADAPTER_TEMPLATE = "chat_template.jinja"
"""The template that the trainer rendered conversations by, where it left one beside the adapter."""

MODEL_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""What belongs to a model beside its weights; a folder of a hub holds much else."""

_WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*\.safetensors(\.index\.json)?")


def is_adapter_file(name: str) -> bool:
    """Whether a file of this name belongs to an adapter."""
    return name in ADAPTER_FILES or name == ADAPTER_TEMPLATE


def is_own_file(path: Path) -> bool:
    """Whether a path is a file, and no link that leads out of its folder."""
    return path.is_file() and path.resolve().is_relative_to(path.parent.resolve())


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a base model."""
    return name in MODEL_FILES or _WEIGHTS.fullmatch(name) is not None


def dataset_format(name: str) -> DatasetFormat | None:
    """The format that the name of a data set's file says; None where its ending is no data set's."""
    return _FORMATS.get(name.rpartition(".")[2].lower()) if "." in name else None


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def folder_digest(files: Mapping[str, str]) -> str:
    """SHA-256 of the sorted lines `sha256  path`, each ended by a newline.

    `files` maps a file's path within the folder to the hexadecimal SHA-256 of its content.
    """
    lines = sorted(f"{sha256}  {path}\n" for path, sha256 in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
