"""Ways to damage copies of model and adapter folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atomscope.errors import InvalidInput


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of `folder` at `target` that a test may change."""
    return Path(shutil.copytree(folder, target))


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object."""
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


def edit_tensors(path: Path, remove: tuple[str, ...] = (), **changes: np.ndarray) -> None:
    """Set and remove tensors of a safetensors file of float32."""
    tensors = load_file(path)
    for name in remove:
        del tensors[name]
    path.unlink()
    save_file(tensors | changes, path)


def rewrite_header(path: Path, change: Any) -> None:
    """Replace the header of a safetensors file by `change(header)`, leaving its data as it is."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = change(json.loads(raw[8 : 8 + length]))
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


def refused(caught: pytest.ExceptionInfo[InvalidInput], code: str) -> tuple[str | None, str | None]:
    """Check the code and that the refusal is told in full; the file and field of its first problem."""
    assert caught.value.code == code
    problem = caught.value.problems[0]
    assert problem.message
    assert problem.message.splitlines()[0] in caught.value.detail or code == "non_finite_adapter"
    return problem.file, problem.field
