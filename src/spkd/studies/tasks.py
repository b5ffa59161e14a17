"""A study as data: networks to train, tapes to record, measurements of trained networks, and what waits for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spkd.training.options import Request

Label = str | int | float | None


@dataclass(frozen=True)
class Recording:
    """A teacher's tape, to be filled ahead of the students that will play it.

    Args:
        request: a request with the teacher, data, recipe and seed that the students share.
        methods: the students' methods; what any of them needs of the teacher is recorded.
    """

    request: Request
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


@dataclass(frozen=True)
class Task:
    """One piece of a study.

    Args:
        name: its folder below the study's, which a finished task fills with ``result.json`` among others.
        work: what is to be done. A student's request names its teacher's folder below the study's.
        after: names of the tasks that must have finished before.
        labels: the columns that tell this task from others in the study's records.
    """

    name: str
    work: Request | Recording | Measurement
    after: tuple[str, ...] = ()
    labels: Mapping[str, Label] = field(default_factory=dict)

    def folder(self, study: Path) -> Path:
        """Return the task's folder in the folder of its study."""
        return study / self.name
