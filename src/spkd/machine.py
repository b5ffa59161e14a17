"""What the machine lets a process use, and which of a run's processes it is."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus() -> int:
    """Return how many processors this process may use, as its affinity and its container's quota say."""
    from joblib import cpu_count

    return int(cpu_count())


def is_launched() -> bool:
    """Return whether this process is one of several that torchrun, or ``--devices``, has started for one run."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_WORLD_SIZE" in os.environ


def is_follower() -> bool:
    """Return whether this is one of several processes of a run other than the first, which speaks for all."""
    return is_launched() and os.environ.get("RANK", "0") != "0"


def numbering_of_processes() -> str | None:
    """Return what processes share whose numbers tell them apart: one start of one machine, and there one container.

    None where the system does not say.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
