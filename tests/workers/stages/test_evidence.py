"""P-values as an audit gives them, from gradients on: on noise they hold their level."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from atomscope.types.spec import AuditConfig
from atomscope_workers.stages.evidence import FOUND, Found
from tests.workers.stages.units import SHAPES, extracted

DOCUMENTS = 36
LEVELS = (0.05, 0.2, 0.5)
SPREAD = (0.05, 0.13, 0.16)
"""Standard deviation from draw to draw of the share below each level: the atoms of one draw share a null."""


def _p_values(work: Path, draw: int) -> list[float]:
    """Of the atoms of documents whose gradients vary more here than there, about a common mean."""
    random = np.random.default_rng(draw)
    gradients = {
        name: (0.3 + random.normal(size=(DOCUMENTS, *shape)) * random.uniform(0.1, 1, shape)).astype("f4")
        for name, shape in SHAPES.items()
    }
    config = AuditConfig(shard_documents=20, fits=1, min_active=2, seed=draw)
    audit = extracted(work, gradients, config)
    audit.through("evidence")
    found = msgspec.json.decode(audit.file(FOUND).read_bytes(), type=Found)
    values = [item.p_value for item in found.atoms.values()]
    assert len(values) > 5, "few atoms test little"
    return [value for value in values if value is not None]


@pytest.mark.parametrize("draws", [range(2), pytest.param(range(2, 43), marks=pytest.mark.long)])
def test_p_values_on_noise_are_no_smaller_than_uniform_ones(tmp_path: Path, draws: range) -> None:
    """At every level, the share below it exceeds it by no more than three standard errors."""
    found = [_p_values(tmp_path / str(draw), draw) for draw in draws]
    for level, spread in zip(LEVELS, SPREAD, strict=True):
        share = np.mean([np.mean(np.array(values) <= level) for values in found])
        assert share <= level + 3 * spread / len(draws) ** 0.5
