"""Every code of an input's refusal is told of in `docs/data.md`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_RAISED = re.compile(
    r'(?:refuse|refuse_dataset|_template_fault|InvalidInput|NothingToAudit)\(\s*"([a-z_]+)"', re.MULTILINE
)
_OF_PATHS = {"bad_path", "in_use", "input_changed", "input_missing"}
"""About where inputs and outputs lie, not about what is in them."""


def test_every_code_that_the_workers_raise_is_documented() -> None:
    raised = {
        code
        for path in (ROOT / "workers").rglob("*.py")
        for code in _RAISED.findall(path.read_text(encoding="utf-8"))
    }
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "data.md").read_text(encoding="utf-8")))
    assert len(raised) > 20
    assert raised - _OF_PATHS - documented == set()
