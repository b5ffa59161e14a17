"""What the machine lets a process use."""

from __future__ import annotations

from joblib import cpu_count


def usable_cpus() -> int:
    """Return how many processors this process may use, as its affinity and its container's quota say."""
    return int(cpu_count())
