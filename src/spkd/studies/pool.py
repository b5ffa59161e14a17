"""Processes on this machine, each of which carries out one job after the other."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from spkd.data.kept import keep_last
from spkd.signals import STOP, end_with_parent, signals_blocked, stop_signals
from spkd.studies.work import GRACE, Job, Outcome, carry_out
from spkd.training.environment import environment_of_children


class Worker:
    """One process, and the job it has.

    Args:
        environment: variables that are set before the process loads anything.

    Attributes:
        job: what it is at work on; None where it is free.
        connection: becomes ready when there is an outcome.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs,))
        with environment_of_children(environment), signals_blocked(spawning=True):
            self._process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        """Hand over a job; when the process is dead, the outcome says so."""
        self.job = job
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def is_alive(self) -> bool:
        """Return whether the process can take a job."""
        return self._process.is_alive()

    def outcome(self) -> Outcome | None:
        """Return what came of the job, which the worker has then no longer; None while it is under way."""
        dead = not self._process.is_alive()  # asked first: what it sent before it died is still there
        if not dead and not self.connection.poll():
            return None
        try:
            outcome: Outcome = self.connection.recv() if self.connection.poll() else self._death()
        except (EOFError, OSError):
            outcome = self._death()
        self.job = None
        return outcome

    def stop(self) -> None:
        """Tell the process to end: a busy one after it has saved, if it can, an idle one at once."""
        if self.job is not None and self.job.saves:
            self._process.terminate()
        else:
            self._process.kill()

    def kill(self) -> None:
        """End the process now."""
        self.connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def _death(self) -> Outcome:
        self._process.join(GRACE)
        code = self._process.exitcode or 0
        if code < 0:
            hint = ", for lack of memory perhaps" if -code == signal.SIGKILL else ""
            return Outcome(failure=f"its process was killed by {signal.Signals(-code).name}{hint}", died=True)
        return Outcome(failure=f"its process ended by itself with exit code {code}", died=True)


class Pool:
    """Workers on this machine: each job to one that is free.

    Args:
        slots: jobs at a time.
        threads: that PyTorch computes with in each of them.
        gpus: as in ``CUDA_VISIBLE_DEVICES``; the slots are dealt out to them in turn. None on the CPU.
    """

    def __init__(self, slots: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self._workers: list[Worker | None] = [None] * slots
        self._threads, self._gpus = threads, gpus

    def has_room(self) -> bool:
        """Return whether another job can be begun."""
        return any(worker is None or worker.job is None for worker in self._workers)

    def begin(self, job: Job) -> None:
        """Begin a job in a free process, a new one where there is none yet or the last has died."""
        free = [slot for slot, worker in enumerate(self._workers) if worker is None or worker.job is None]
        slot = min(free, key=lambda slot: self._workers[slot] is None)
        worker = self._workers[slot]
        if worker is not None and not worker.is_alive():
            worker.kill()
            worker = None
        if worker is None:
            worker = self._workers[slot] = Worker(self._variables(slot))
        worker.begin(job)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Return the outcomes there are, by task name, after waiting so long for one at the most."""
        busy = [worker for worker in self._workers if worker is not None and worker.job is not None]
        wait([worker.connection for worker in busy], seconds)
        ended = []
        for worker in busy:
            name = worker.job.task.name if worker.job is not None else ""
            if (outcome := worker.outcome()) is not None:
                ended.append((name, outcome))
        return ended

    def stop(self) -> list[tuple[str, Outcome]]:
        """End all processes, within :data:`GRACE`; return what came of the jobs that were under way."""
        workers = [worker for worker in self._workers if worker is not None]
        ended = []
        try:
            for worker in workers:
                worker.stop()
            until = time.monotonic() + GRACE
            while any(worker.job for worker in workers) and time.monotonic() < until:
                ended += self.wait(0.2)
        finally:
            self._workers = [None] * len(self._workers)
            for worker in workers:
                worker.kill()
        return ended

    def _variables(self, slot: int) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": str(self._threads)}
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return variables


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in ``CUDA_VISIBLE_DEVICES``; none where there is no CUDA."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else named.split(",")[:count]


def _serve(connection: Connection) -> None:
    """Carry out the jobs that come until there are no more, a signal says to stop, or the parent is dead."""
    end_with_parent()
    keep_last()
    with stop_signals() as received, contextlib.suppress(EOFError, OSError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        while not received:
            job = connection.recv()
            connection.send(Outcome() if received else carry_out(job))
            _free_memory()


def _free_memory() -> None:
    """Give back what the last job left behind: others compute on this GPU too."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None:
        with contextlib.suppress(RuntimeError):  # after a step that could not be recorded the allocator may refuse
            torch.cuda.empty_cache()
