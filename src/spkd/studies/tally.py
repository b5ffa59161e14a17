"""What a person sees of a study: what is running, how much is done, how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from spkd.studies.outcome import outcome_text
from spkd.studies.schedule import Schedule
from spkd.studies.tasks import Task
from spkd.training.progress import Display

SHOWN = 3
"""Names of running tasks, or of such as have failed before, that are shown at the most."""


class Tally:
    """Counts a study's tasks and tells a display.

    The time left follows from the tasks that finished in this call: each of the others is expected to take as long as
    those of its kind did on average. Tasks that had finished before take next to nothing, and count so.

    Args:
        schedule: the tasks, and what came of them.
        finished: those that had finished before, by name.
        display: where it is shown.
    """

    def __init__(self, schedule: Schedule, finished: Mapping[str, Any], display: Display) -> None:
        self._schedule, self._finished, self._display = schedule, finished, display
        self._begun: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._shown = (0, "")
        if finished:
            display.say(f"{len(finished)} of {schedule.total} tasks were already finished")
        for name, reason in list(schedule.failed.items())[:SHOWN]:
            display.say(f"{name} is left out: {reason}")
        if len(schedule.failed) > SHOWN:
            display.say(f"... and {len(schedule.failed) - SHOWN} more task(s)")
        display.begin("tasks", schedule.total, self._done())

    def begin(self, task: Task) -> None:
        """Count a task as running."""
        self._begun[task.name] = time.monotonic()

    def finish(self, task: Task, result: Mapping[str, Any]) -> None:
        """Count a task as done, and say what came out."""
        seconds = self._end(task)
        if task.name not in self._finished:
            self._seconds.setdefault(task.kind, []).append(seconds)
            self._say(task, outcome_text(result) or "done")

    def fail(self, task: Task, reason: str) -> None:
        """Count a task as failed, and say why."""
        self._end(task)
        self._say(task, f"failed: {reason}")

    def again(self, task: Task, reason: str) -> None:
        """Say that a task will be begun again."""
        self._begun.pop(task.name)
        self._say(task, f"{reason}; it continues in another process")

    def show(self) -> None:
        """Show what is running, where that has changed since it was last shown."""
        names = list(self._begun)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = (self._done(), f"running: {', '.join(names[:SHOWN])}{more}")
        if names and shown != self._shown and self._display.update(*shown, self.left()):
            self._shown = shown

    def left(self) -> float | None:
        """Return how many seconds the rest is expected to take; None before a task has finished."""
        durations = [seconds for kind in self._seconds.values() for seconds in kind]
        if not durations:
            return None
        now, work = time.monotonic(), 0.0
        for task in self._schedule.open():
            if task.name not in self._finished:
                expected = fmean(self._seconds.get(task.kind, durations))
                work += max(0.0, expected - (now - self._begun.get(task.name, now)))
        return work / max(1, len(self._begun))

    def _end(self, task: Task) -> float:
        return time.monotonic() - self._begun.pop(task.name)

    def _done(self) -> int:
        return len(self._schedule.results) + len(self._schedule.failed)

    def _say(self, task: Task, text: str) -> None:
        self._display.say(f"[{self._done()}/{self._schedule.total}] {task.name}: {text}")
