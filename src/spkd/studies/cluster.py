"""A Ray cluster, on which each job runs where there is room; the study's folder must be on storage that all share."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

from spkd.errors import InputError, one_line
from spkd.studies.work import GRACE, Job, Outcome, carry_out


class Cluster:
    """Jobs as Ray tasks, one processor and a share of a GPU each.

    Args:
        address: of the cluster, or auto for the one that this machine belongs to.
        accelerator: as in :class:`~spkd.training.options.Runtime`; auto is a GPU where the cluster has any.
        jobs_per_gpu: jobs that share a GPU.
        jobs: jobs at a time; None for as many as the cluster has room for at the moment.

    Raises:
        InputError: when Ray is not installed, there is no such cluster, or it has no such device.
    """

    def __init__(self, address: str, accelerator: str, jobs_per_gpu: int, jobs: int | None) -> None:
        self._ray, self._own = _connected(address)
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if accelerator not in ("auto", "cpu", "cuda", "gpu") or (accelerator in ("cuda", "gpu") and not gpus):
            raise InputError(f"--accelerator {accelerator}: the cluster at {address} has none; try auto or cpu")
        share = 1 / jobs_per_gpu if gpus and accelerator != "cpu" else 0
        self._remote = self._ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(_carry_out)
        self._share, self._jobs = share, jobs
        self._running: dict[Any, Job] = {}

    def has_room(self) -> bool:
        """Return whether another job can be handed over; the cluster lets it wait where others need the room."""
        return len(self._running) < (self._jobs or self._size())

    def begin(self, job: Job) -> None:
        """Hand a job to the cluster."""
        self._running[self._remote.remote(job, str(Path.cwd()))] = job

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Return the outcomes there are, by task name, after waiting so long for one at the most."""
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [(self._running.pop(reference).task.name, self._outcome(reference)) for reference in done]

    def stop(self) -> list[tuple[str, Outcome]]:
        """Cancel all jobs, those that save after they have saved; return what came of them."""
        ended = []
        for reference, job in self._running.items():
            self._ray.cancel(reference, force=not job.saves)
        until = time.monotonic() + GRACE
        while self._running and time.monotonic() < until:
            ended += self.wait(0.2)
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._own:
            self._ray.shutdown()
        return ended

    def _size(self) -> int:
        there = self._ray.cluster_resources()
        processors = int(there.get("CPU", 0))
        return max(1, min(processors, round(there.get("GPU", 0) / self._share)) if self._share else processors)

    def _outcome(self, reference: Any) -> Outcome:
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except exceptions.TaskCancelledError:
            return Outcome()
        except exceptions.RayTaskError as error:
            return Outcome(failure=one_line(error))
        except exceptions.RayError as error:
            return Outcome(failure=f"its process on the cluster died: {one_line(error)}", died=True)
        return outcome


def has_gpus(address: str) -> bool:
    """Return whether the cluster has a GPU at the moment.

    Raises:
        InputError: when Ray is not installed, or there is no such cluster.
    """
    ray, own = _connected(address)
    try:
        return bool(ray.cluster_resources().get("GPU", 0))
    finally:
        if own:
            ray.shutdown()


def _connected(address: str) -> tuple[Any, bool]:
    """Return Ray, and whether it was connected for this call."""
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs the package ray: pip install 'spkd[ray]'") from error
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    return ray, own


def _connect(ray: Any, address: str) -> None:
    try:
        if (place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)) is not None:
            # Ray itself would try for minutes.
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except Exception as error:
        raise InputError(
            f"--ray {address}: there is no Ray cluster to be reached ({one_line(error)}); start one with "
            "`ray start --head`, or leave out --ray"
        ) from error


def _carry_out(job: Job, folder: str) -> Outcome:
    """Carry out a job in a process of the cluster, as in ``folder``, which relative paths in the job count from."""
    import torch

    from spkd.data.kept import keep_last
    from spkd.signals import stop_signals

    with contextlib.suppress(OSError):  # a study with absolute paths alone needs no such folder on every machine
        os.chdir(folder)
    torch.set_num_threads(1)
    keep_last()
    with stop_signals():
        return carry_out(job)
