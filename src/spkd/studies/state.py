"""Where a study stands, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StudyState:
    """What came of every task.

    Attributes:
        results: what ``result.json`` holds, by task name, of those that have finished.
        failed: the reason in one line, by task name; the whole story is in the task's ``task.log``.
        missing: names of those that neither finished nor failed: the study was stopped in time, or what they
            wait for failed.
    """

    results: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
