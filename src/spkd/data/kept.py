"""What a process keeps between runs, so that many on the same images load them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_kept: dict[Any, tuple[Any, Any]] | None = None
"""What each function gave last, and for what; None in a process that keeps nothing."""


def keep_last() -> None:
    """Have this process keep the last images that it loads, until it loads others.

    What changes on the disk meanwhile is not seen.
    """
    global _kept
    if _kept is None:
        _kept = {}


@contextmanager
def keeping_last() -> Iterator[None]:
    """Do as :func:`keep_last` does for a while."""
    global _kept
    before = _kept
    keep_last()
    try:
        yield
    finally:
        _kept = before


def kept(key: Key, load: Callable[[Key], Value]) -> Value:
    """Return ``load(key)``, or what it gave the last time where that is kept and was for the same key.

    >>> kept("digits", len)
    6
    """
    if _kept is None:
        return load(key)
    known, value = _kept.pop(load, (None, None))
    if known != key:
        del value  # before loading, so that two sets are never in memory together
        value = load(key)
    _kept[load] = key, value
    return cast(Value, value)
