"""Run a study: a graph of tasks, several at a time, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spkd.data.kept import keeping_last
from spkd.errors import InputError
from spkd.files import require_utf8, require_writable
from spkd.signals import is_past, stop_signals
from spkd.studies.options import RunnerOptions
from spkd.studies.schedule import Schedule
from spkd.studies.state import PLAN, StudyState, earlier_failure, mark_failed, read_running, save_plan
from spkd.studies.tally import Tally
from spkd.studies.tasks import Recording, Task, in_order
from spkd.studies.work import Job, Outcome, earlier_result, failure_line, tape_folder
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display

if TYPE_CHECKING:
    from spkd.studies.cluster import Cluster
    from spkd.studies.pool import Pool


def run_study(
    tasks: Sequence[Task],
    folder: Path,
    options: RunnerOptions,
    runtime: Runtime,
    display: Display,
    *,
    first: Callable[[], object] | None = None,
) -> StudyState:
    """Run what is not finished of ``tasks`` in the study's ``folder`` and return what came of every task.

    A task that has finished is not run again (it is only held against what is asked for now), one that was
    interrupted goes on, one that has failed is left alone unless ``options.retry_failed``. A task whose process dies
    is begun again up to :data:`~spkd.studies.schedule.ATTEMPTS` times. ``runtime.max_time`` is the time for all
    together; then, and on SIGINT or SIGTERM, nothing more is begun, and what is running is stopped with checkpoints.
    Several calls may work in one folder at a time: a task that another one has begun is waited for. ``first`` is called
    before anything is looked at or begun, once all that this refuses has been refused.

    Raises:
        InputError: for a task's name that comes twice, a tape of the user's own, a folder that cannot be written, a
            device or cluster that is not there. Errors in tasks are no errors here but ``failed``.
    """
    in_order(tasks)
    if runtime.tape is not None:
        raise InputError("--tape is for one run: a study makes the tapes that its plan names, so leave it out")
    deadline = runtime.deadline()
    require_utf8("--out", folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file, not a folder")
    if options.no_tapes:
        tasks = _without_recordings(tasks)
    workers = _workers(options, runtime, len(tasks))
    require_writable(folder / PLAN)
    if first is not None:
        first()
    save_plan(tasks, folder)
    finished, failed = _earlier(tasks, folder, options)
    schedule = Schedule(tasks, finished, failed)
    with display:
        _Study(tasks, folder, runtime, deadline, schedule, Tally(schedule, finished, display)).run(workers)
    return schedule.state()


class _Study:
    """One call of :func:`run_study` at work."""

    def __init__(
        self,
        tasks: Sequence[Task],
        folder: Path,
        runtime: Runtime,
        deadline: float | None,
        schedule: Schedule,
        tally: Tally,
    ) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._folder, self._runtime, self._deadline = folder, runtime, deadline
        self._schedule, self._tally = schedule, tally

    def run(self, workers: Pool | Cluster) -> None:
        with stop_signals() as received:
            try:
                while not (received or is_past(self._deadline)):
                    while workers.has_room() and (task := self._schedule.next(self._is_taken)) is not None:
                        self._tally.begin(task)
                        workers.begin(self._job(task))
                    self._tally.show()
                    if not self._schedule.running:
                        break
                    for name, outcome in workers.wait(0.2):
                        self._take(name, outcome, stopped=bool(received))
            finally:
                for name, outcome in workers.stop():
                    self._take(name, outcome, stopped=True)

    def _is_taken(self, name: str) -> bool:
        """Return whether another call of the same study is at a task."""
        return read_running(self._tasks[name].folder(self._folder)) is not None

    def _job(self, task: Task) -> Job:
        return Job(task, str(self._folder), self._own_runtime(task).until(self._deadline))

    def _own_runtime(self, task: Task) -> Runtime:
        """Return the runtime of a task: a student that waits for a recording plays its tape."""
        recordings = [name for name in task.after if isinstance(self._tasks[name].work, Recording)]
        if not recordings or not isinstance(task.work, Request):
            return self._runtime
        return replace(self._runtime, tape=str(tape_folder(self._folder, recordings[0])))

    def _take(self, name: str, outcome: Outcome, *, stopped: bool) -> None:
        """Take an outcome; what was interrupted though nobody stopped the study is tried again."""
        task = self._tasks[name]
        if outcome.result is not None:
            self._schedule.finish(name, outcome.result)
            self._tally.finish(task, outcome.result)
        elif outcome.failure is not None and not outcome.died:
            self._schedule.fail(name, outcome.failure)
            self._tally.fail(task, outcome.failure)
        elif stopped or is_past(self._deadline):
            self._schedule.drop(name)
        elif self._schedule.try_again(name):
            self._tally.again(task, outcome.failure or "it was interrupted")
        else:
            reason = f"{outcome.failure or 'it was interrupted'}, again and again"
            mark_failed(task, self._folder, reason)
            self._schedule.fail(name, reason)
            self._tally.fail(task, reason)


def _earlier(
    tasks: Sequence[Task], folder: Path, options: RunnerOptions
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Return results and failures of earlier calls that still stand, by task name.

    A finished task is held against what is asked for now where all that it builds on has finished, and by its worker
    else.
    """
    finished: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    by_name = {task.name: task for task in tasks}
    with keeping_last():
        for task in in_order(tasks):
            if (reason := earlier_failure(task, folder, forget=options.retry_failed)) is not None:
                failed[task.name] = reason
            elif _builds_on(task, by_name) <= finished.keys():
                try:
                    result = earlier_result(task, folder)
                except InputError as error:
                    failed[task.name] = failure_line(error, task.folder(folder))
                    continue
                if result is not None:
                    finished[task.name] = result
    for task in tasks:
        if isinstance(task.work, Recording):
            _settle_recording(task, tasks, finished, failed)
    return finished, failed


def _builds_on(task: Task, tasks: Mapping[str, Task]) -> set[str]:
    """Return the names of the tasks whose results decide this one's: not a recording, but what that waits for."""
    names: set[str] = set()
    for name in task.after:
        names |= _builds_on(tasks[name], tasks) if isinstance(tasks[name].work, Recording) else {name}
    return names


def _without_recordings(tasks: Sequence[Task]) -> list[Task]:
    """Return the other tasks; each waits for what its recording would have waited for."""
    by_name = {task.name: task for task in tasks}
    others = [task for task in tasks if not isinstance(task.work, Recording)]
    return [replace(task, after=tuple(sorted(_builds_on(task, by_name)))) for task in others]


def _settle_recording(
    recording: Task, tasks: Sequence[Task], finished: dict[str, Mapping[str, Any]], failed: dict[str, str]
) -> None:
    """Leave out a recording for which nothing waits any more, and take up again any other: its tape may be gone."""
    players = {task.name for task in tasks if recording.name in task.after}
    if not players:
        return
    if players <= finished.keys() | failed.keys():
        finished.setdefault(recording.name, {})
        failed.pop(recording.name, None)
    else:
        finished.pop(recording.name, None)


def _workers(options: RunnerOptions, runtime: Runtime, tasks: int) -> Pool | Cluster:
    """Return where the tasks will run.

    Raises:
        InputError: for a device or cluster that is not there.
    """
    if options.ray is not None:
        from spkd.studies.cluster import Cluster

        return Cluster(options.ray, runtime.accelerator, options.jobs_per_gpu, options.jobs)
    import torch

    from spkd.machine import usable_cpus
    from spkd.studies.pool import Pool, visible_gpus
    from spkd.training.devices import make_fabric

    on_cpu = make_fabric(runtime).device.type == "cpu"
    gpus = [] if on_cpu else visible_gpus()
    usual = usable_cpus() if on_cpu else max(1, len(gpus)) * options.jobs_per_gpu
    slots = max(1, min(options.jobs or usual, tasks))
    return Pool(slots, max(1, torch.get_num_threads() // slots), gpus)
