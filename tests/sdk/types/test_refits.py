"""Settings of a refit: the parent's, a preset's or given, as far as what the parent stored allows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atomscope.types.refits import NeedsExtraction, refit_config
from atomscope.types.spec import AuditConfig

SKETCHED = AuditConfig(gradients="sketch", exact_documents=10_000, sketch_columns=4096)
"""As audits were made under other defaults than today's."""


def test_a_preset_leaves_a_sketch_the_columns_that_it_was_drawn_in() -> None:
    found = refit_config(SKETCHED, {"n_atoms": 7}, "default")
    assert (found.exact_documents, found.sketch_columns, found.n_atoms) == (10_000, 4096, 7)


def test_a_preset_takes_its_own_where_gradients_are_there() -> None:
    parent = msgspec.structs.replace(SKETCHED, gradients="float32")
    assert refit_config(parent, {}, "default").sketch_columns == "auto"


@pytest.mark.parametrize("preset", [None, "default"])
@pytest.mark.parametrize("settings", [{"sketch_columns": 64}, {"exact_documents": 5}, {"damping": 0.5}])
def test_a_sketch_is_drawn_once(settings: dict[str, Any], preset: str | None) -> None:
    (name,) = settings
    with pytest.raises(NeedsExtraction, match=f"`{name}` decides how gradients are whitened") as refused:
        refit_config(SKETCHED, settings, preset)
    assert refused.value.setting == name
