"""Which errors of a run's result are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def counts_balanced(result: Mapping[str, Any]) -> bool:
    """Return whether balanced errors are to be shown: a run's classes are unequal, or its epoch was kept by them."""
    return bool(result.get("classes_unequal")) or result.get("select") == "balanced"


def outcome_text(result: Mapping[str, Any]) -> str:
    """Return in words how the network of a run errs on the test images; nothing for the result of a measurement.

    >>> outcome_text({"test_error": 2.5})
    'test error 2.50 %'
    >>> outcome_text({"test_error": 2.5, "test_balanced_error": 4.0, "select": "balanced"})
    'test error 2.50 % (balanced 4.00 %)'
    >>> outcome_text({})
    ''
    """
    error = result.get("test_error")
    if error is None:
        return ""
    balanced = result.get("test_balanced_error") if counts_balanced(result) else None
    return f"test error {error:.2f} %" + ("" if balanced is None else f" (balanced {balanced:.2f} %)")
