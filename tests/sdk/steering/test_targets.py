"""What may be turned up or down, as it is written."""

from __future__ import annotations

import pytest

from atomscope.errors import SteeringError
from atomscope.steering import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target", "key"),
    [
        ("7", Target("atom", 7), "7"),
        ("atom:7", Target("atom", 7), "7"),
        ("behaviour:0", Target("behaviour", 0), "behaviour:0"),
    ],
)
def test_a_target_is_read_and_written(text: str, target: Target, key: str) -> None:
    assert parse_target(text) == target
    assert target.key == key
    assert parse_target(key) == target


@pytest.mark.parametrize(
    "text", ["", "-1", "07", "7.0", "behaviour", "behaviour:", "behavior:1", "atom: 1", "٣", "1\n", "9" * 10]
)
def test_anything_else_is_refused_with_what_would_be_accepted(text: str) -> None:
    with pytest.raises(SteeringError, match="write 7, atom:7 or behaviour:3"):
        parse_target(text)
