"""Named settings of an audit."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from atomscope.types.spec import AuditConfig

PresetName = Literal["default", "top-components", "paper"]

PRESETS: dict[PresetName, dict[str, Any]] = {
    "default": {},
    "top-components": {"preconditioner": "ekfac"},
    "paper": {
        "preconditioner": "kfac",
        "components": 50,
        "solver": "sklearn",
        "codes": "signed",
        "n_atoms": 500,
        "alpha": 0.1,
        "vector_power": "+1/2",
    },
}
"""Settings of each preset that differ from the defaults.

- `default`: measured lambda, every component, over-complete non-negative codes merged into atoms.
- `top-components`: the same in the 50 components of largest lambda of each module: smaller, and worse.
- `paper`: Gradient Atoms as published (arXiv 2603.14665, sections 3.2 to 3.5).
"""


def preset(name: PresetName, **settings: Any) -> AuditConfig:  # noqa: ANN401
    """The settings of a preset, some of them replaced.

    Raises `ValueError` for an unknown preset, `msgspec.ValidationError` for an unknown or wrong setting.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; one of {', '.join(get_args(PresetName))} is expected")
    return msgspec.convert(PRESETS[name] | settings, AuditConfig)
