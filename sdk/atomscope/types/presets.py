"""Named settings of an audit: the one place that says which there are, for SDK, CLI and service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from atomscope.decoding import validation_error
from atomscope.errors import UsageError
from atomscope.types.spec import AuditConfig

PresetName = Literal["default", "top-components", "paper"]


class Preset(msgspec.Struct, kw_only=True, frozen=True):
    """Settings by name."""

    name: str
    description: str
    """One line."""
    settings: dict[str, Any]
    """Those that differ from the defaults of `AuditConfig`."""
    object: Literal["preset"] = "preset"


PRESETS: dict[PresetName, Preset] = {
    "default": Preset(
        name="default",
        description="measured lambda, every component, over-complete non-negative codes merged into atoms",
        settings={},
    ),
    "top-components": Preset(
        name="top-components",
        description="the same in the 50 components of largest lambda of each module: smaller, and worse",
        settings={"preconditioner": "ekfac"},
    ),
    "paper": Preset(
        name="paper",
        description="Gradient Atoms as published (arXiv 2603.14665, sections 3.2 to 3.5)",
        settings={
            "preconditioner": "kfac",
            "components": 50,
            "solver": "sklearn",
            "codes": "signed",
            "n_atoms": 500,
            "alpha": 0.1,
            "vector_power": "+1/2",
        },
    ),
}


def with_preset(name: str, settings: Mapping[str, Any]) -> AuditConfig:
    """The settings of a preset, those given in their place.

    Raises `ValueError` for an unknown preset, `msgspec.ValidationError` for an unknown or wrong setting.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; one of {', '.join(get_args(PresetName))} is expected")
    try:
        return msgspec.convert({**PRESETS[name].settings, **settings}, AuditConfig)
    except msgspec.ValidationError as error:
        raise validation_error(error, AuditConfig) from error


def preset(name: PresetName, **settings: Any) -> AuditConfig:  # noqa: ANN401
    """`with_preset`, the settings as arguments; raises `UsageError` for what it does not take."""
    try:
        return with_preset(name, settings)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(str(error)) from error
