"""One task of a study, carried out in the process that calls."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spkd import __version__
from spkd.errors import InputError, NoRoom, ReaderDied, RunFailed, UnusableFolder, one_line
from spkd.files import write_json_atomically
from spkd.signals import is_past
from spkd.studies.state import claimed, forget_failure, mark_failed
from spkd.studies.tasks import Measurement, Recording, Task
from spkd.training.options import Runtime
from spkd.training.progress import Lines
from spkd.training.run_folder import TASK_LOG, RunFolder

GRACE = 60.0
"""Seconds in which a job that is told to stop can save."""


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt at a task: a result, a failure, or neither when it was stopped.

    Attributes:
        result: what ``result.json`` holds.
        failure: why it failed, in one line.
        died: whether it failed because its process, or one that reads images for it, died, so that it
            can be tried again.
    """

    result: Mapping[str, Any] | None = None
    failure: str | None = None
    died: bool = False


@dataclass(frozen=True)
class Job:
    """A task with all that another process needs to carry it out.

    Args:
        task: the task.
        study: the folder of its study.
        runtime: how it is carried out; its time is counted from when it is begun, by the clock of whoever does it.
    """

    task: Task
    study: str
    runtime: Runtime

    @property
    def saves(self) -> bool:
        """Whether the work, told to stop, saves where it stands; a measurement begins anew."""
        return not isinstance(self.task.work, Measurement)


def carry_out(job: Job) -> Outcome:
    """Do a job; what it prints, and the traceback of an error, go to ``task.log`` in the task's folder."""
    deadline = job.runtime.deadline()
    if is_past(deadline):
        return Outcome()
    study, task = Path(job.study), job.task
    folder = task.folder(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder, deadline) as ours:
            if not ours:
                return Outcome()
            with _printing_to(folder / TASK_LOG):
                print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}, process {os.getpid()}")
                return _attempt(task, study, job.runtime.until(deadline))
    except (OSError, InputError) as error:
        return Outcome(failure=f"cannot write {folder}: {one_line(error)}")


def tape_folder(study: Path, recording: str) -> Path:
    """Return where the tape of the recording of this name lies."""
    return study / recording / "tape"


def earlier_result(task: Task, study: Path) -> Mapping[str, Any] | None:
    """Return the result of a task that has finished before; None when it has not, or must be measured again.

    A training is only compared with what is asked for: its device may be another machine's, and no tape is read.

    Raises:
        InputError: when the folder holds the result of another configuration, or of other weights, code or images.
    """
    folder = RunFolder(task.folder(study))
    result = folder.result()
    if result is None or isinstance(task.work, Recording):
        return result
    if isinstance(task.work, Measurement):
        return result if result.get("identity") == _identity(task.work, task, study) else None
    from spkd.training.setup import set_up

    setup = set_up(task.work)
    config, identity = setup.config(), setup.identity()
    folder.check(config, identity, resume=True, overwrite=False)
    folder.begin(config, identity, overwrite=False)
    return result


def failure_line(error: BaseException, folder: Path) -> str:
    """Return why the task of ``folder`` failed, with what helps in a study: its commands lack options of a run's."""
    if isinstance(error, UnusableFolder):
        return f"{error.what}; remove {folder} to make it anew, or give another --out"
    if isinstance(error, NoRoom):
        return f"{error}, or do without tapes by --no_tapes"
    return str(error) if isinstance(error, InputError | RunFailed) else one_line(error)


def _attempt(task: Task, study: Path, runtime: Runtime) -> Outcome:
    try:
        finished = _do(task, study, runtime)
        if finished:
            forget_failure(task, study)
        return Outcome(result=RunFolder(task.folder(study)).result() if finished else None)
    except (Exception, SystemExit) as error:  # code of the user's own may raise anything
        traceback.print_exc()
        reason = failure_line(error, task.folder(study))
        died = isinstance(error, ReaderDied)
        if not died:
            mark_failed(task, study, reason)
        return Outcome(failure=reason, died=died)


def _do(task: Task, study: Path, runtime: Runtime) -> bool:
    """Do the work and leave ``result.json``; return False when it was stopped before the end."""
    work, folder = task.work, task.folder(study)
    if isinstance(work, Measurement):
        _measure(work, folder, _identity(work, task, study), runtime)
        return True
    if isinstance(work, Recording):
        return _record(work, tape_folder(study, task.name), folder, runtime)
    from spkd.training.run import run

    return run(work, folder, runtime, Lines(), resume=True) is not None


def _record(work: Recording, tape: Path, folder: Path, runtime: Runtime) -> bool:
    from spkd.training.recording import record

    deadline, told = runtime.deadline(), dict[str, Any]()
    for request in work.requests:
        recorded = record(request, work.methods, tape, runtime.until(deadline), Lines())
        if recorded is None:
            return False
        told |= recorded
    if told != RunFolder(folder).result():
        RunFolder(folder).write_result(told)
    return True


def _measure(work: Measurement, folder: Path, identity: str, runtime: Runtime) -> None:
    earlier = RunFolder(folder).result()
    if earlier is not None and earlier.get("identity") == identity:
        print("measured already")
        return
    measured = {**work.function(folder, runtime, **work.arguments), "identity": identity}
    write_json_atomically(folder / "result.json", measured)


def _identity(work: Measurement, task: Task, study: Path) -> str:
    """Return a hash of the function, its arguments, the package's version and the results that it builds on."""
    decided = {
        "function": work.function_name,
        "arguments": work.arguments,
        "version": __version__,
        "after": {name: RunFolder(study / name).result() for name in task.after},
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Append to a file all that this process and its children print, from native code too."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            kept = os.dup(number)
            os.dup2(log.fileno(), number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        yield
