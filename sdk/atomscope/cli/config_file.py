"""`--config FILE`: settings of an audit from JSON or TOML, decoded strictly."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from atomscope.decoding import repeated_key
from atomscope.errors import UsageError
from atomscope.types.presets import PresetName, with_preset
from atomscope.types.spec import AuditConfig

_MAX_BYTES = 1024 * 1024


def read_config(path: Path | None, preset: PresetName = "default") -> AuditConfig:
    """The settings of a preset with those of a file (`.toml`, else JSON) in their place.

    Raises `UsageError` that names the file and the field: an unknown name, a wrong type, out of range.
    """
    try:
        return with_preset(preset, read_settings(path))
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from error


def read_settings(path: Path | None) -> dict[str, Any]:
    """The settings that a file gives, not checked yet; none without a file."""
    settings = {} if path is None else _read(path)
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: an object of settings is expected")
    return settings


def _read(path: Path) -> Any:  # noqa: ANN401  (checked by the caller)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{path} is longer than {_MAX_BYTES} bytes: not a configuration")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        if path.suffix.lower() == ".toml":
            return tomllib.loads(content.decode())
        found = msgspec.json.decode(content)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.DecodeError) as error:
        kind = "TOML" if path.suffix.lower() == ".toml" else "JSON (TOML ends in .toml)"
        raise UsageError(f"{path} is not {kind}: {error}") from error
    repeated = repeated_key(content)
    if repeated is not None:
        raise UsageError(f"{path}: {repeated!r} is given twice")
    return found
