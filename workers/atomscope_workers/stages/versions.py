"""The software that runs an audit, which its spec records and an interrupted audit goes on under."""

from __future__ import annotations

import platform
from importlib import metadata

_DISTRIBUTIONS = (
    "atomscope",
    "numpy",
    "peft",
    "safetensors",
    "scikit-learn",
    "tokenizers",
    "torch",
    "transformers",
)


def software_versions() -> dict[str, str]:
    """Versions by distribution name, and `python`."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"  # imported from its source folder
    return found
