"""Notices that a training waits for its images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from spkd.data.stream import Batch

INTERVAL = 10.0
"""Seconds at the least over which the waiting is measured."""
OFTEN = 0.3
"""Share of the time that is waited from which on it is said."""


class Waiting:
    """Says once that a training waits for its images for much of the time.

    On a processor it waits while the next batch is not there. A GPU is behind the loop and may be busy meanwhile: there
    the time counts in which it had nothing to do, by its own clock, from the end of a step to the next batch, as far as
    the loop waited for that. The first batches of an epoch do not count, for which the readers are started.

    Args:
        device: which the network learns on.
        readers: processes that read the images, 0 for the training's own; None where nothing is read.
        say: shows a line of text.
    """

    def __init__(self, device: torch.device, readers: int | None, say: Callable[[str], None]) -> None:
        self._device, self._readers, self._say = device, readers or 0, say
        self._looks = readers is not None and device.type in ("cpu", "cuda")
        self._seconds, self._waited = 0.0, 0.0
        # How long the loop waited, from the end of which step, until when: what the GPU has not come to yet.
        self._pending: deque[tuple[float, torch.cuda.Event, torch.cuda.Event]] = deque()

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Give the batches of an epoch, and look at how long they take to come."""
        number, before = 0, 0.0
        while self._looks:
            ended, asked = self._mark(), time.perf_counter()
            if number > self._readers:
                self._seconds += asked - before
                self._look()
            batch = next(batches, None)
            if batch is None:
                return
            if number >= self._readers:
                self._add(time.perf_counter() - asked, ended)
            number, before = number + 1, asked
            yield batch
        yield from batches

    def _mark(self) -> torch.cuda.Event | None:
        """Return a mark of the place that the GPU's work has come to by now; None on a processor."""
        if self._device.type != "cuda":
            return None
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        return mark

    def _add(self, seconds: float, ended: torch.cuda.Event | None) -> None:
        """Count a wait; on a GPU that ended a step at a mark, when the GPU has come to its end."""
        came = self._mark()
        if ended is None or came is None:
            self._waited += seconds
            return
        self._pending.append((seconds, ended, came))
        while self._pending and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            seconds, ended, came = self._pending.popleft()
            self._waited += min(seconds, ended.elapsed_time(came) / 1000)

    def _look(self) -> None:
        if self._seconds < INTERVAL:
            return
        share = self._waited / self._seconds
        if share > OFTEN:
            self._looks = False
            self._say(
                f"warning: the training waited for images {share:.0%} of the last {self._seconds:.0f} seconds: more "
                f"--workers (now {self._readers}), or smaller copies of large photos, may make it faster"
            )
        self._seconds = self._waited = 0.0
