"""Which task comes next, and what came of those before: the graph of a study, without any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from spkd.studies.state import StudyState
from spkd.studies.tasks import Task

ATTEMPTS = 3
"""Times that a task is begun whose process dies."""


class Schedule:
    """The tasks of one call of the runner.

    Args:
        tasks: in the order in which they are begun, where nothing else decides.
        finished: results of earlier calls by name; these are not handed out.
        failed: reasons by name; nor are these.
    """

    def __init__(
        self, tasks: Sequence[Task], finished: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]
    ) -> None:
        self.total = len(tasks)
        self.running: dict[str, Task] = {}
        self.results = dict(finished)
        self.failed = dict(failed)
        self._tasks = tasks
        self._attempts: dict[str, int] = {}
        self._graph = TopologicalSorter(
            {task.name: set(task.after).difference(finished) for task in tasks if task.name not in finished}
        )
        self._graph.prepare()
        self._ready: set[str] = set()
        self._advance()

    def next(self, is_taken: Callable[[str], bool]) -> Task | None:
        """Hand out a task that can be begun; None when there is none now.

        One of which ``is_taken`` says, by its name, that another process is at it comes after the others.
        """
        ready = [task for task in self._tasks if task.name in self._ready]
        task = next((task for task in ready if not is_taken(task.name)), ready[0] if ready else None)
        if task is not None:
            self._ready.remove(task.name)
            self.running[task.name] = task
        return task

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Take the result of a running task; what waited for it alone can be begun now."""
        del self.running[name]
        self.results[name] = result
        self._graph.done(name)
        self._advance()

    def fail(self, name: str, reason: str) -> None:
        """Take the failure of a running task; what waits for it will not be begun."""
        del self.running[name]
        self.failed[name] = reason

    def drop(self, name: str) -> None:
        """Take a running task that was stopped."""
        del self.running[name]

    def try_again(self, name: str) -> bool:
        """Take a running task whose process died: return whether it will be handed out again, and else leave it."""
        self._attempts[name] = self._attempts.get(name, 1) + 1
        if self._attempts[name] > ATTEMPTS:
            return False
        del self.running[name]
        self._ready.add(name)
        return True

    def open(self) -> list[Task]:
        """Return the tasks that are running or can still be begun: those that wait for a failed one cannot."""
        lost = set(self.failed)
        while more := {task.name for task in self._tasks if task.name not in lost and lost.intersection(task.after)}:
            lost |= more
        return [task for task in self._tasks if task.name not in lost and task.name not in self.results]

    def state(self) -> StudyState:
        """Return what came of every task up to now."""
        names = [task.name for task in self._tasks]
        return StudyState(
            results={name: self.results[name] for name in names if name in self.results},
            failed={name: self.failed[name] for name in names if name in self.failed},
            missing=tuple(name for name in names if name not in self.results and name not in self.failed),
        )

    def _advance(self) -> None:
        """Take what has become ready; what has failed before stays back, and all that waits for it."""
        self._ready.update(name for name in self._graph.get_ready() if name not in self.failed)
