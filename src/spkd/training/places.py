"""Where the things that a run names lie. It decides nothing: weights, code and images are told apart by content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CODE_FILE = re.compile(r"[^+?]+\.py(?=:)")


def absolute(text: str | None) -> str | None:
    """Return ``text`` with the paths in it that exist made absolute, so that it means the same from any folder."""
    if text is None or Path(text).exists():
        return None if text is None else str(Path(text).resolve())
    return _CODE_FILE.sub(lambda found: str(Path(found[0]).resolve()) if Path(found[0]).is_file() else found[0], text)


def without_place(value: Any) -> Any:
    """Return a value of a configuration with absolute paths taken out: of a file of code its name is left.

    >>> without_place("sp+/home/me/own.py:Loss?margin=2"), without_place("/home/me/runs/teacher"), without_place(64)
    ('sp+own.py:Loss?margin=2', 'a path', 64)
    """
    if not isinstance(value, str):
        return value
    named = _CODE_FILE.sub(lambda found: Path(found[0]).name if Path(found[0]).is_absolute() else found[0], value)
    return "a path" if Path(named).is_absolute() else named


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with absolute paths taken out, equal for runs of which only places differ."""
    return {name: without_place(value) for name, value in config.items()}
