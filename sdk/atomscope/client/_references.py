"""Telling an id from a path where a method takes either, and checking what a call is made with."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from atomscope.errors import UsageError
from atomscope.types.presets import PresetName, with_preset
from atomscope.types.refits import refit_config
from atomscope.types.spec import AuditConfig

_ID = re.compile(r"[a-z]{2,3}_[0-9a-f]{32}")
_SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KINDS = {"mdl": "model", "ada": "adapter", "ds": "data set", "aud": "audit"}


def is_id(reference: str | Path, prefix: str) -> bool:
    """Whether `reference` is an id of this kind.

    A `Path` never is; a `str` of an id's form (`mdl_` and 32 hexadecimal digits) always is, even where
    a file of that name exists: write `./mdl_...` or a `Path` for it. Raises `UsageError` when it is an id
    of another kind, or neither an id nor an existing path.
    """
    if isinstance(reference, str) and _ID.fullmatch(reference):
        if not reference.startswith(f"{prefix}_"):
            raise UsageError(f"{reference} is not the id of a {_KINDS[prefix]}: those begin with {prefix}_")
        return True
    try:
        exists = os.path.exists(reference)  # noqa: PTH110  (takes a str that could not be a Path)
    except ValueError:  # a NUL, which no path holds
        exists = False
    if exists:
        return False
    if isinstance(reference, Path):
        raise UsageError(f"no such file or folder: {reference}")
    raise UsageError(
        f"{reference!r} is neither the id of a {_KINDS[prefix]} ({prefix}_...) nor an existing path"
    )


def segment(resource_id: str) -> str:
    """`resource_id`, which is to be one segment of a URL's path; raises `UsageError` when it is no id."""
    if not _SEGMENT.fullmatch(resource_id):
        raise UsageError(f"not an id: {resource_id!r}")
    return resource_id


def checked_refit(
    parent: AuditConfig, config: Mapping[str, Any] | None, preset: PresetName | None
) -> dict[str, Any]:
    """The settings that a refit is given; raises `UsageError` for what the service would refuse."""
    given = dict(config or {})
    try:
        refit_config(parent, given, preset)
    except msgspec.ValidationError as error:
        raise UsageError(f"config: {error}") from error
    except ValueError as error:
        raise UsageError(f"{error}") from error
    return given


def checked_settings(
    config: AuditConfig | Mapping[str, Any] | None, preset: PresetName | None
) -> dict[str, Any]:
    """The settings that are given; raises `UsageError` for an unknown name or preset, or a bad value.

    A Struct is checked too: msgspec checks ranges when it decodes, not when a Struct is made. It gives every
    setting, so that there is nothing left for a preset to give.
    """
    if isinstance(config, AuditConfig) and preset is not None:
        raise UsageError("an AuditConfig gives every setting: give config as a dict, or no preset")
    given = msgspec.to_builtins(config) if isinstance(config, AuditConfig) else dict(config or {})
    try:
        with_preset("default" if preset is None else preset, given)
    except msgspec.ValidationError as error:
        raise UsageError(f"config: {error}") from error
    except ValueError as error:
        raise UsageError(f"{error}") from error
    return given
