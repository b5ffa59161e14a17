"""A study as data: networks to train, tapes to record, measurements of trained networks, and what waits for what."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from spkd.errors import InputError
from spkd.training.options import Request

Label = str | int | float | None


@dataclass(frozen=True)
class Recording:
    """A teacher's tape, to be filled ahead of the students that will play it.

    Args:
        requests: the students, or those of them that need unlike things of the teacher, which has the same images to
            speak of with each: what any needs is recorded.
        methods: the students' methods, likewise.
    """

    requests: tuple[Request, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """Something measured on networks that other tasks have trained.

    Args:
        function: a function of a module, so that it can be sent to another process. It is called as
            ``function(folder, runtime, **arguments)``, may write arrays into ``folder``, and returns what
            ``result.json`` shall hold.
        arguments: what JSON can hold.
    """

    function: Callable[..., Mapping[str, Any]]
    arguments: Mapping[str, Any]

    @property
    def function_name(self) -> str:
        """The function as ``module:name``."""
        return f"{self.function.__module__}:{self.function.__qualname__}"


@dataclass(frozen=True)
class Task:
    """One piece of a study.

    Args:
        name: its folder below the study's, which a finished task fills with ``result.json`` among others.
        work: what is to be done. A student's request names its teacher's folder below the study's. A student that
            waits for a recording plays its tape; it can wait for one recording only.
        after: names of the tasks that must have finished before.
        labels: the columns that tell this task from others in the study's records.
    """

    name: str
    work: Request | Recording | Measurement
    after: tuple[str, ...] = ()
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the work is, in a word: training, recording or measurement."""
        if isinstance(self.work, Measurement):
            return "measurement"
        return "recording" if isinstance(self.work, Recording) else "training"

    def folder(self, study: Path) -> Path:
        """Return the task's folder in the folder of its study."""
        return study / self.name

    def digest(self) -> str:
        """Return a hash of the work, which tells whether the task is still the same."""
        if isinstance(self.work, Measurement):
            described: Mapping[str, Any] = {"function": self.work.function_name, "arguments": self.work.arguments}
        else:
            described = dataclasses.asdict(self.work)
        text = json.dumps({"kind": self.kind, **described}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks so that each comes after those that it waits for.

    Raises:
        InputError: for a name that comes twice.
    """
    by_name: dict[str, Task] = {}
    for task in tasks:
        if task.name in by_name:
            raise InputError(f"task {task.name!r} comes twice; give each task a name of its own")
        by_name[task.name] = task
    return [by_name[name] for name in TopologicalSorter({task.name: task.after for task in tasks}).static_order()]
