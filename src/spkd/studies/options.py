"""Where a study's tasks run, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass

from spkd.errors import InputError


@dataclass(frozen=True)
class RunnerOptions:
    """Where a study's tasks run, and how many at a time.

    Args:
        jobs: number of tasks at a time (default: one per processor core, or --jobs_per_gpu for each GPU; on a Ray
            cluster as many as it has room for).
        jobs_per_gpu: number of tasks that share a GPU.
        ray: run the tasks on a Ray cluster: its address, or auto for the one that this machine belongs to.
        retry_failed: try again what failed in an earlier call.
        no_tapes: run the teacher again for each student; for studies whose tapes would take too much room, or in which
            reading the images takes longer than the teacher does.
    """

    jobs: int | None = None
    jobs_per_gpu: int = 1
    ray: str | None = None
    retry_failed: bool = False
    no_tapes: bool = False

    def __post_init__(self) -> None:
        for name in ("jobs", "jobs_per_gpu"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, not {value}")
