"""`/v1/presets`: settings that an audit can be given by name."""

from __future__ import annotations

from litestar import Controller, get

from atomscope.types.presets import PRESETS, Preset
from atomscope.types.resources import Page


class PresetController(Controller):
    path = "/v1/presets"
    tags = ["audits"]  # noqa: RUF012

    @get(operation_id="listPresets", sync_to_thread=False)
    def list_all(self) -> Page[Preset]:
        """Every preset on one page: its name, what it is for, and the settings it changes."""
        return Page(data=list(PRESETS.values()), has_more=False)
