"""A copy of the golden bundle that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sdk.bundle.golden_bundle import GOLDEN


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "bundle")
