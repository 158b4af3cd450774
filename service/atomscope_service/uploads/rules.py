"""Which files an upload may hold, by purpose. Names are checked before a byte is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence

from atomscope.input_files import (
    ADAPTER_FILES,
    DATASET_ENDINGS,
    dataset_format,
    is_adapter_file,
    is_model_file,
)
from atomscope.types.inputs import UploadFileSpec, UploadPurpose
from atomscope_service.api.problems import ProblemError
from atomscope_service.settings import Settings

IGNORED = frozenset({"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes"})
"""Accepted so that a whole folder can be sent; not kept."""

_TRAINER_SUFFIXES = (".json", ".jsonl", ".jinja", ".txt", ".md", ".model", ".log", ".yaml", ".yml", ".png")
"""Of what trainers leave beside an adapter: tokenizers, logs, settings. Accepted; see `kept_files`."""

TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
    }
)
"""One of them holds a tokenizer's vocabulary."""

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill")
"""Formats that are, or may hold, pickles: loading one runs code of whoever made it."""

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9._=-]{0,254}")


def check_name(purpose: UploadPurpose, name: str, param: str) -> None:
    """Refuse (422) a name that is not plain, a pickle, or a file that the purpose has no use for."""
    if _NAME.fullmatch(name) is None or set(name) == {"."}:
        raise ProblemError(
            422, "invalid_file_name", "A file name is plain: no folders, no `..`.", param=param
        )
    if purpose != "dataset" and name.lower().endswith(PICKLE_SUFFIXES):
        raise ProblemError(
            422,
            "pickle_refused",
            f"{name} may hold a pickle, which can run code when it is loaded: send safetensors only."
            + (f" An adapter is {' and '.join(sorted(ADAPTER_FILES))}." if purpose == "adapter" else ""),
            param=param,
        )
    allowed = {
        "adapter": name in ADAPTER_FILES | IGNORED or name.endswith(_TRAINER_SUFFIXES),
        "dataset": dataset_format(name) is not None,
        "model": name in IGNORED or is_model_file(name),
    }
    if not allowed[purpose]:
        raise ProblemError(422, "file_not_allowed", f"{name} has no place in {_A[purpose]}.", param=param)


_A_DATASET = f"one file that ends in {', '.join(DATASET_ENDINGS)}"
_A = {"adapter": "an adapter", "dataset": f"a data set ({_A_DATASET})", "model": "a model"}


def check_set(purpose: UploadPurpose, names: Sequence[str], param: str) -> None:
    """Refuse (422) a set of allowed names that lacks a file or holds one too many."""
    present = set(names)
    if len(present) != len(names):
        raise ProblemError(422, "duplicate_file", "A file is named twice.", param=param)
    missing: list[str] = []
    if purpose == "adapter":
        missing = sorted(ADAPTER_FILES - present)
    elif purpose == "model":
        if "config.json" not in present:
            missing.append("config.json")
        if not any(name.endswith(".safetensors") for name in present):
            missing.append("a .safetensors file")
        if not present & TOKENIZER_FILES:
            missing.append("a tokenizer (tokenizer.json)")
    elif len(names) != 1:
        raise ProblemError(422, "one_file_only", f"A data set is {_A_DATASET}.", param=param)
    if missing:
        raise ProblemError(422, "file_missing", f"The upload lacks {', '.join(missing)}.", param=param)


def check_files(settings: Settings, purpose: UploadPurpose, files: Sequence[UploadFileSpec]) -> None:
    """Every check that needs only the list of files: names, the set, and the size (413)."""
    for number, file in enumerate(files):
        check_name(purpose, file.path, f"files[{number}].path")
    check_set(purpose, [file.path for file in files], "files")
    limit = {
        "adapter": settings.max_adapter_bytes,
        "dataset": settings.max_dataset_bytes,
        "model": settings.max_model_bytes,
    }[purpose]
    size = sum(file.size for file in files)
    if size > limit:
        detail = f"The files hold {size} bytes; {_A[purpose]} may hold {limit}."
        raise ProblemError(413, "upload_too_large", detail, param="files")


def kept_files(names: Sequence[str]) -> list[str]:
    """The names that go into the resource; of an adapter's folder, what belongs to the adapter alone."""
    if set(names) >= ADAPTER_FILES:
        return sorted(filter(is_adapter_file, names))
    return sorted(name for name in names if name not in IGNORED)
