"""Every method with every seed, in a pool of processes, and what came of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spkd.data.decoding import usable_cpus
from spkd.errors import InputError, RunFailed, one_line
from spkd.losses.methods import method_label
from spkd.studies.records import (
    BASELINE,
    Comparison,
    ComparisonRow,
    comparison_row,
    save_comparison,
    save_csv,
)
from spkd.studies.side_by_side import alone_request, request_with_teacher
from spkd.training.devices import make_fabric
from spkd.training.loop import stop_signals
from spkd.training.options import Request, Runtime
from spkd.training.progress import Display, Silent, display
from spkd.training.run import run, slug, software
from spkd.training.run_folder import RunFolder
from spkd.training.setup import pinned, set_up


@dataclass(frozen=True)
class Task:
    """One run of a comparison: all of it can be sent to another process."""

    method: str
    request: Request
    folder: str
    runtime: Runtime
    deadline: float | None
    overwrite: bool


def compare(
    request: Request,
    *,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    runtime: Runtime,
    default_teacher: str,
    jobs: int | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Comparison | None:
    """Train the student with every method and every seed 0 … ``seeds`` - 1, and compare.

    Runs that have finished in ``out`` before are not repeated; one that was interrupted goes on. All share image size
    and recipe, and those of one seed share first weights, batches and augmentation, so the test over seeds is paired.

    Returns:
        The comparison, written to ``out`` as ``comparison.json`` and ``comparison.csv`` too, or None when it was
        stopped by ``runtime.max_time`` or a signal; the same call goes on.

    Raises:
        InputError: for whatever the user can mend.
        RunFailed: when runs failed, after the others finished.
    """
    methods = _checked(methods, seeds, jobs)
    deadline = runtime.deadline()
    if request.teacher is None and any(method != BASELINE for method in methods):
        with_teacher = request_with_teacher(request, default_teacher, runtime, display())
        if with_teacher is None:
            return None
        request = with_teacher
    requests, data_name = _requests(request, methods, out, overwrite)
    tasks = [
        Task(method, replace(requests[method], seed=seed), _folder(out, method, seed), runtime, deadline, overwrite)
        for seed in range(seeds)
        for method in methods
    ]
    results = _run_all(tasks, min(jobs or _default_jobs(runtime), len(tasks)))
    if results is None:
        return None
    comparison = Comparison(
        title=f"{request.model} on {data_name}",
        teacher=_teacher_record(request),
        student=request.model,
        data=data_name,
        rows=_rows(methods, tasks, results),
        command=command,
        software=software(),
    )
    save_comparison(comparison, out / "comparison.json")
    save_csv(comparison, out / "comparison.csv")
    return comparison


def _checked(methods: Sequence[str], seeds: int, jobs: int | None) -> list[str]:
    """Return the methods in their usual spelling; refuse what needs neither images nor networks to be refused."""
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {jobs}")
    labels = [method_label(method) for method in methods]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"--methods names {repeated[0]!r} twice")
    return labels


def _requests(request: Request, methods: Sequence[str], out: Path, overwrite: bool) -> tuple[dict[str, Request], str]:
    """Return each method's request, all with one image size and recipe, and the data's name; try each once.

    Raises:
        InputError: as :func:`spkd.training.setup.set_up` does, and when ``out`` holds runs of other configurations.
    """
    leading = next((method for method in methods if method != BASELINE), BASELINE)
    first = set_up(_with_method(request, leading))
    requests = {method: _with_method(pinned(request, first), method) for method in methods}
    for method, one in requests.items():
        config = set_up(one).config()
        for folder in (out / slug(method)).glob("seed-*"):
            seed = folder.name.removeprefix("seed-")
            if not overwrite and seed.isdigit():
                RunFolder(folder).refuse_other({**config, "seed": int(seed)})
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, not a folder")
    return requests, first.data.name


def _folder(out: Path, method: str, seed: int) -> str:
    return str(out / slug(method) / f"seed-{seed}")


def _with_method(request: Request, method: str) -> Request:
    return alone_request(request) if method == BASELINE else replace(request, method=method)


def _rows(
    methods: Sequence[str], tasks: Sequence[Task], results: Sequence[dict[str, Any]]
) -> tuple[ComparisonRow, ...]:
    def row(method: str, baseline: ComparisonRow | None) -> ComparisonRow:
        own = [result for task, result in zip(tasks, results, strict=True) if task.method == method]
        return comparison_row(
            method,
            seeds=[result["seed"] for result in own],
            test_errors=[result["test_error"] for result in own],
            val_errors=[result["val_error"] for result in own],
            baseline=baseline,
        )

    alone = row(BASELINE, None) if BASELINE in methods else None
    return tuple(alone if method == BASELINE and alone else row(method, alone) for method in methods)


def _teacher_record(request: Request) -> dict[str, Any]:
    if request.teacher is None:
        return {}
    result = RunFolder(Path(request.teacher)).result() or {}
    kept = ("model", "test_error", "val_error", "parameters")
    return {"spec": request.teacher, **{key: result[key] for key in kept if key in result}}


def _default_jobs(runtime: Runtime) -> int:
    if make_fabric(runtime).device.type != "cpu":
        return 1
    return usable_cpus()


def _run_all(tasks: Sequence[Task], jobs: int) -> list[dict[str, Any]] | None:
    """Run the tasks in ``jobs`` processes; return their results in order, or None when they were stopped.

    No more tasks are handed out than run, and on SIGINT or SIGTERM the running ones are told to stop, which they do
    with a checkpoint.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    outcomes: dict[int, dict[str, Any] | str | None] = {}
    running: dict[Future[dict[str, Any] | str | None], int] = {}
    waiting = list(range(len(tasks)))[::-1]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_prepare_worker, initargs=(threads,))
    with _counter(len(tasks)) as count, stop_signals() as received:
        while (waiting and not received) or running:
            while waiting and len(running) < jobs and not received:
                place = waiting.pop()
                running[pool.submit(_run_task, tasks[place])] = place
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                place = running.pop(future)
                outcomes[place] = _outcome(future)
                count(tasks[place], outcomes[place])
            if received:
                for child in multiprocessing.active_children():
                    child.terminate()
                break
    pool.shutdown(wait=True, cancel_futures=True)
    ended = sorted(outcomes.items())
    if failed := [(tasks[place], outcome) for place, outcome in ended if isinstance(outcome, str)]:
        task, reason = failed[0]
        raise RunFailed(
            f"{len(failed)} of {len(tasks)} runs failed, the others are kept. First, {task.folder}: {reason}"
        )
    results = [outcome for _, outcome in ended if isinstance(outcome, dict)]
    return results if len(results) == len(tasks) else None


def _outcome(future: Future[dict[str, Any] | str | None]) -> dict[str, Any] | str | None:
    """Return what a task gave, or why its process died."""
    try:
        return future.result()
    except Exception as error:
        return one_line(error)


def _prepare_worker(threads: int) -> None:
    """Set a worker's threads, and let it end itself when its parent has died without a word."""
    torch.set_num_threads(threads)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # a run under way saves a checkpoint
        time.sleep(30)
        os._exit(1)


def _run_task(task: Task) -> dict[str, Any] | str | None:
    """Run one task; return its result, the reason of its failure, or None when it was stopped."""
    if task.deadline is not None and time.time() >= task.deadline:
        return None
    runtime = task.runtime.until(task.deadline)
    try:
        return run(task.request, task.folder, runtime, Silent(), resume=not task.overwrite, overwrite=task.overwrite)
    except (InputError, RunFailed) as error:
        return str(error)
    except Exception as error:
        return one_line(error)


@contextmanager
def _counter(total: int) -> Iterator[Any]:
    """Give a function that shows a finished run."""
    shown: Display = display()
    done = 0
    with shown:
        shown.begin("runs", total, 0)

        def count(task: Task, outcome: dict[str, Any] | str | None) -> None:
            nonlocal done
            done += 1
            text = f"test error {outcome['test_error']:.2f} %" if isinstance(outcome, dict) else outcome or "stopped"
            shown.say(f"[{done}/{total}] {task.method}, seed {task.request.seed}: {text}")
            if sys.stderr.isatty():
                shown.update(done, "")

        yield count
    sys.stderr.flush()
