"""Where a study stands: what lies in its folder beside the results of its tasks, written and read."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spkd.errors import InputError, RunFailed
from spkd.files import locked, not_now, read_json, usual_mode, write_json_atomically
from spkd.machine import numbering_of_processes
from spkd.signals import is_past, stop_signals
from spkd.studies.tasks import Task
from spkd.training.run_folder import FAILED, RUNNING, RunFolder

PLAN = "study.json"
BEAT = 5.0
"""Seconds between two signs of life of a task."""
SILENCE = 60.0
"""Seconds without a sign of life after which a task counts as dead."""


@dataclass(frozen=True)
class StudyState:
    """What came of every task.

    Attributes:
        results: what ``result.json`` holds, by task name, of those that have finished.
        failed: the reason in one line, by task name; where the task was begun, the whole story is in its ``task.log``.
        missing: names of those that neither finished nor failed: the study was stopped in time, or what they
            wait for failed.
    """

    results: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    missing: tuple[str, ...]

    def raise_failure(self, folder: Path) -> None:
        """Do nothing when no task has failed.

        Raises:
            RunFailed: else; one line with the first failure, and what to do where it is noted beside a log.
        """
        if self.failed:
            name, reason = next(iter(self.failed.items()))
            total = len(self.results) + len(self.failed) + len(self.missing)
            noted = (folder / name / FAILED).exists()
            hint = " (its task.log says more; --retry_failed tries again)" if noted else ""
            counted = f"{len(self.failed)} of {total} tasks failed, what has finished is kept"
            raise RunFailed(f"{counted}. First, {folder / name}: {reason}{hint}")


@dataclass(frozen=True)
class TaskState:
    """Where one task stands.

    Attributes:
        name: its folder below the study's.
        kind: training, recording or measurement.
        state: done (also of a recording whose players are all done, with or without its tape), running, failed,
            stopped (a training that goes on from its checkpoint) or missing.
        result: of a task that is done, what its ``result.json`` holds.
        reason: of a task that has failed, in one line.
        host: of a task that is running, where.
        since: of a task that is running or has failed, when that began, as of ``time.time()``.
        epochs: of a training, how many are done and of how many; both 0 before it has begun, and of others.
    """

    name: str
    kind: str
    state: str
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    host: str = ""
    since: float | None = None
    epochs: tuple[int, int] = (0, 0)


def save_plan(tasks: Sequence[Task], folder: Path) -> None:
    """Write ``study.json``, from which :func:`study_state` knows what there is to do.

    Tasks that earlier calls planned in this folder stay in it.

    Raises:
        InputError: when the folder cannot be written, or what is planned cannot be read at the moment.
    """
    with locked(folder, wait=True):
        plan = {task["name"]: task for task in _plan(folder)}
        for task in tasks:
            plan[task.name] = {"name": task.name, "kind": task.kind, "labels": dict(task.labels), "after": task.after}
        write_json_atomically(folder / PLAN, {"tasks": list(plan.values())})


def _plan(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(dict(json.loads((folder / PLAN).read_text(encoding="utf-8"))).get("tasks", []))
    except (FileNotFoundError, ValueError, TypeError):  # none, or a damaged one
        return []
    except OSError as error:
        raise not_now(folder / PLAN, error) from error


def planned(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tasks that calls have planned in a folder, and of what each waits for; none elsewhere."""
    return {task["name"]: list(task["after"]) for task in _plan(folder)}


def study_state(folder: Path) -> tuple[TaskState, ...]:
    """Return where each task of a study stands, in the order of the plan, from its folder alone.

    Raises:
        InputError: when the folder holds no study, or a file in it cannot be read.
    """
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))["tasks"]
        tasks = [(str(task["name"]), str(task["kind"])) for task in plan]
        after = {str(task["name"]): set(map(str, task["after"])) for task in plan}
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no study: there is no {PLAN} in it, as `spkd compare` and `spkd reproduce` write"
        ) from error
    except OSError as error:
        raise not_now(folder / PLAN, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / PLAN} cannot be read: is it damaged? Repeating the command of the study repairs it"
        ) from error
    states = [_task_state(folder, *task) for task in tasks]
    done = {state.name for state in states if state.state == "done"}
    return tuple(_with_players(state, {name for name in after if state.name in after[name]}, done) for state in states)


def _with_players(state: TaskState, players: set[str], done: set[str]) -> TaskState:
    """Return where a task stands, given those that wait for it: a recording has served once they are all done."""
    if state.kind != "recording" or state.state == "running" or not players or not players <= done:
        return state
    return TaskState(state.name, state.kind, "done", state.result)


def _task_state(study: Path, name: str, kind: str) -> TaskState:
    run = RunFolder(study / name)
    begun, epochs = _progress(run)
    if (running := read_running(run.path)) is not None:
        since, host = running["since"], running["host"]
        return TaskState(name, kind, "running", host=host, since=since, epochs=epochs)
    if (failed := _failure(run)) is not None:
        return TaskState(name, kind, "failed", reason=str(failed["reason"]), since=failed["since"])
    if (result := run.result()) is not None:
        return TaskState(name, kind, "done", result=result)
    return TaskState(name, kind, "stopped" if begun else "missing", epochs=epochs)


def _progress(run: RunFolder) -> tuple[bool, tuple[int, int]]:
    """Return whether there is something to go on from, and how many epochs are done and of how many."""
    try:
        return run.has_begun(), run.epochs()
    except InputError:  # a damaged file, which the run itself will complain of
        return False, (0, 0)


def mark_failed(task: Task, study: Path, reason: str) -> None:
    """Note that a task has failed, so that the next call does not try it again.

    Raises:
        InputError: when the folder cannot be written.
    """
    noted = {"reason": reason, "since": time.time(), "task": task.digest()}
    write_json_atomically(task.folder(study) / FAILED, noted)


def earlier_failure(task: Task, study: Path, *, forget: bool) -> str | None:
    """Return why the task failed in an earlier call; None when it did not, was another then, or is to be forgotten."""
    failed = _failure(RunFolder(task.folder(study)))
    if failed is not None and not forget and failed.get("task") == task.digest():
        return str(failed["reason"])
    forget_failure(task, study)
    return None


def forget_failure(task: Task, study: Path) -> None:
    """Remove the note that a task has failed."""
    (task.folder(study) / FAILED).unlink(missing_ok=True)


def _failure(run: RunFolder) -> dict[str, Any] | None:
    """Return what is noted of a task's failure; None without one, or where a result has come after it."""
    path = run.path / FAILED
    with suppress(OSError):
        if (run.path / "result.json").stat().st_mtime > path.stat().st_mtime:
            return None
    return read_json(path)


@contextmanager
def claimed(folder: Path, deadline: float | None) -> Iterator[bool]:
    """Have the task of ``folder`` for this process alone, with a sign of life every :data:`BEAT` seconds.

    Where another process has it, which another call has started or whose parent was killed, its end is waited for.

    Returns:
        Whether the task is this process's; False when the deadline or a signal to stop came first.
    """
    if not _wait_for_claim(folder, deadline):
        yield False
        return
    path, ended = folder / RUNNING, threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    try:
        yield True
    finally:
        ended.set()
        pulse.join()
        noted = _read_claim(path)
        if noted is not None and noted["pid"] == os.getpid() and _counts_as_here(noted):
            path.unlink(missing_ok=True)


def _wait_for_claim(folder: Path, deadline: float | None) -> bool:
    with stop_signals() as received:
        while not received:
            if _claim(folder):
                return True
            if is_past(deadline):
                break
            time.sleep(1.0)
    return False


def _claim(folder: Path) -> bool:
    """Write ``running.json`` unless another process that lives has."""
    path = folder / RUNNING
    if read_running(folder) is not None:
        return False
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{RUNNING}.") as file:
        own = {"pid": os.getpid(), "host": socket.gethostname(), "processes": numbering_of_processes()}
        json.dump({**own, "since": time.time()}, file)
        file.flush()
        Path(file.name).chmod(usual_mode())
        try:
            _put(Path(file.name), path)
        except FileExistsError:
            if read_running(folder) is None and not _is_being_written(path):
                _remove_stale(path)
            return False
    return True


def _put(source: Path, target: Path) -> None:
    """Have what ``source`` holds at ``target`` too, unless there is something: then FileExistsError."""
    try:
        os.link(source, target)  # which then appears with all its content
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb") as file:
            file.write(source.read_bytes())


def _is_being_written(claim: Path) -> bool:
    with suppress(FileNotFoundError):
        return claim.stat().st_size == 0 and not _is_silent(claim)
    return False


def _remove_stale(claim: Path) -> None:
    """Remove the claim of a dead process, and not one that another has made since it was looked at."""
    aside = claim.with_name(f".{claim.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        claim.rename(aside)
        if _of_the_living(aside) is not None:
            with suppress(FileExistsError):
                _put(aside, claim)
        aside.unlink()


def read_running(folder: Path) -> dict[str, Any] | None:
    """Return ``pid``, ``host`` and ``since`` of the process that carries out the folder's task; None without one."""
    return _of_the_living(folder / RUNNING)


def _of_the_living(path: Path) -> dict[str, Any] | None:
    """Return what a claim holds, if its process lives."""
    noted = _read_claim(path)
    try:
        if noted is None or _is_silent(path):
            return None
        if _counts_as_here(noted):
            os.kill(noted["pid"], 0)  # only asks whether there is such a process
    except PermissionError:  # there is, and it is somebody else's
        return noted
    except (OSError, OverflowError):
        return None
    return noted


def _is_silent(path: Path) -> bool:
    """Return whether a claim has had no sign of life for too long.

    By the clock of the file system, by which that is dated: a server's may be behind this machine's, or before it.
    """
    beat = path.stat().st_mtime
    if 0 <= time.time() - beat <= SILENCE:
        return False
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            now = os.fstat(file.fileno()).st_mtime
    except OSError:  # a folder of another user's
        return True
    return now - beat > SILENCE


def _counts_as_here(noted: Mapping[str, Any]) -> bool:
    """Return whether the number of a claim's process means what it means here; of earlier versions the host tells."""
    here = numbering_of_processes()
    return (noted["host"], noted.get("processes", here)) == (socket.gethostname(), here)


def _read_claim(path: Path) -> dict[str, Any] | None:
    """Return what a claim holds; None where there is none, or it is damaged."""
    noted = read_json(path) or {}
    kinds = (("pid", int), ("host", str), ("since", int | float))
    return noted if all(isinstance(noted.get(name), kind) for name, kind in kinds) else None
