"""Presets are settings by name, and each is whole and valid."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from atomscope.errors import UsageError
from atomscope.types.presets import PRESETS, PresetName, preset, with_preset
from atomscope.types.spec import AuditConfig


@pytest.mark.parametrize("name", get_args(PresetName))
def test_every_preset_is_a_valid_audit(name: PresetName) -> None:
    found = preset(name)
    assert all(getattr(found, field) == value for field, value in PRESETS[name].settings.items())
    assert PRESETS[name].name == name
    assert "\n" not in PRESETS[name].description
    assert PRESETS.keys() == set(get_args(PresetName))


def test_the_default_preset_is_the_defaults_and_settings_replace_those_of_a_preset() -> None:
    assert preset("default") == AuditConfig()
    assert preset("paper", n_atoms=7).n_atoms == 7
    assert preset("paper").alpha == 0.1


def test_what_is_unknown_or_wrong_is_refused() -> None:
    with pytest.raises(UsageError, match="one of default, top-components, paper"):
        preset("best")  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match="name"):
        with_preset("paper", {"name": "a setting of no audit"})
    with pytest.raises(UsageError, match="alhpa"):
        preset("paper", alhpa=1)
    with pytest.raises(UsageError, match="signed"):
        preset("paper", codes="nonnegative")
