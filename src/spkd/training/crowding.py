"""Notices that other programs take a processor's cores from the threads of a training."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch

INTERVAL = 10.0
"""Seconds between two looks at the least."""
OFTEN = 80.0
"""Times a second that a thread is put off its core. Measured on two cores: 12 to 27 where nothing else ran, 55 beside
processes that decode photos, 96 to 127 beside a program that keeps one core or both."""


class Crowding:
    """Says once that a training is slow because its threads are often put off their cores.

    PyTorch's threads wait for each other at the end of each operation, and on Linux keep their cores while they wait:
    the quickest way on a machine of one's own. Where one of them is put off its core, the others use theirs up until it
    has one again.

    Args:
        device: which the network learns on; there is something to look for where it is a processor.
        say: shows a line of text.
    """

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._say = say
        self._threads = torch.get_num_threads()
        chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        self._looks = device.type == "cpu" and sys.platform == "linux" and self._threads > 1 and not chosen
        self._before: tuple[float, int] | None = None

    def look(self) -> None:
        """Look at the time since the last look, where it is long enough."""
        if not self._looks:
            return
        now = time.monotonic()
        if self._before is not None and now - self._before[0] < INTERVAL:
            return
        times = _times_put_off()
        if self._before is not None and times - self._before[1] > OFTEN * self._threads * (now - self._before[0]):
            self._looks = False
            self._say(
                "warning: other programs keep taking cores from the threads of this run, which wait for each other: "
                "with OMP_WAIT_POLICY=passive before the command, it can be several times as fast"
            )
        self._before = now, times


def _times_put_off() -> int:
    """Return how many times this process's threads have been put off a core that they had a use for."""
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
