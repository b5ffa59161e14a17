"""Durations on the command line."""

import pytest

from spkd.errors import InputError
from spkd.training.options import seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5", 1.5),
        ("30m", 1800),
        ("1h30m", 5400),
        ("2d", 172800),
        ("01:30:00", 5400),
        ("10:05", 605),
    ],
)
def test_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_no_duration_is_none() -> None:
    assert seconds(None) is None


@pytest.mark.parametrize("text", ["", "soon", "-5", "1x", "h", "1:2:3:4"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--max_time"):
        seconds(text)
