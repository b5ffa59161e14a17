"""Run a study: a graph of tasks, several at a time, each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spkd.studies.state import StudyState
from spkd.studies.tasks import Task
from spkd.training.options import Runtime
from spkd.training.progress import Display

__all__ = ["RunnerOptions", "StudyState", "run_study"]


@dataclass(frozen=True)
class RunnerOptions:
    """Where a study's tasks run, and how many at a time.

    Args:
        jobs: tasks at a time (default: one per processor core, or --jobs_per_gpu for each GPU).
        jobs_per_gpu: tasks that share a GPU.
        ray: run the tasks on this Ray cluster: its address, or auto for the one this machine belongs to.
        retry_failed: try again what failed in an earlier call.
    """

    jobs: int | None = None
    jobs_per_gpu: int = 1
    ray: str | None = None
    retry_failed: bool = False


def run_study(
    tasks: Sequence[Task], folder: Path, options: RunnerOptions, runtime: Runtime, display: Display
) -> StudyState:
    """Run what is not finished of ``tasks`` in the study's ``folder`` and return what came of every task."""
    raise NotImplementedError
