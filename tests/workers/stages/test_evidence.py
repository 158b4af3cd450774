"""P-values as an audit gives them, from gradients on: on noise they are uniform."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from atomscope.types.spec import AuditConfig
from atomscope_workers.stages.evidence import FOUND, Found
from tests.workers.stages.units import SHAPES, extracted

DOCUMENTS = 36
LEVELS = (0.05, 0.2, 0.5, 0.8)
SPREAD = {"atoms": (0.07, 0.12, 0.15, 0.11), "behaviours": (0.08, 0.16, 0.2, 0.14)}
"""Standard deviation from draw to draw of the share below each level: what one draw finds shares a null."""


SPACES: dict[str, dict[str, int]] = {
    "every inner product": {},
    "directions": {"exact_documents": 1, "sketch_columns": 64, "directions": 12},
}


def _p_values(work: Path, draw: int, space: str) -> dict[str, list[float]]:
    """Of atoms and behaviours of documents whose gradients vary more here than there, about a common mean."""
    random = np.random.default_rng(draw)
    gradients = {
        name: (0.3 + random.normal(size=(DOCUMENTS, *shape)) * random.uniform(0.1, 1, shape)).astype("f4")
        for name, shape in SHAPES.items()
    }
    config = AuditConfig(shard_documents=20, fits=1, min_active=2, seed=draw, **SPACES[space])
    audit = extracted(work, gradients, config)
    audit.through("evidence")
    found = msgspec.json.decode(audit.file(FOUND).read_bytes(), type=Found)
    evidence = {
        "atoms": [item.p_value for item in found.atoms.values()],
        "behaviours": [item.evidence.p_value for item in found.behaviours],
    }
    assert all(len(values) > 5 for values in evidence.values()), "few test little"
    return {kind: [value for value in values if value is not None] for kind, values in evidence.items()}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("draws", [range(2), pytest.param(range(2, 43), marks=pytest.mark.long)])
def test_p_values_on_noise_are_uniform(tmp_path: Path, draws: range, space: str) -> None:
    """At every level, the share below it is the level within three standard errors."""
    found = [_p_values(tmp_path / str(draw), draw, space) for draw in draws]
    for kind, spreads in SPREAD.items():
        for level, spread in zip(LEVELS, spreads, strict=True):
            shares = [np.mean(np.array(values[kind]) <= level) for values in found]
            assert np.mean(shares) == pytest.approx(level, abs=3 * spread / len(draws) ** 0.5), (kind, level)
