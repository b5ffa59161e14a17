"""Every method with every seed, in a pool of processes, and what came of it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spkd.errors import InputError, RunFailed
from spkd.studies.records import (
    BASELINE,
    Comparison,
    ComparisonRow,
    comparison_row,
    save_comparison,
    save_csv,
)
from spkd.studies.side_by_side import alone_request, request_with_teacher
from spkd.training.options import Request, Runtime, seconds
from spkd.training.progress import Display, Silent, display
from spkd.training.run import run, slug, software
from spkd.training.run_folder import RunFolder
from spkd.training.setup import set_up


@dataclass(frozen=True)
class Task:
    """One run of a comparison: all of it can be sent to another process."""

    method: str
    request: Request
    folder: str
    runtime: Runtime
    deadline: float | None


def compare(
    request: Request,
    *,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    runtime: Runtime,
    default_teacher: str,
    jobs: int | None = None,
    command: str = "",
) -> Comparison | None:
    """Train the student with every method and every seed 0 … ``seeds`` - 1, and compare.

    Runs that have finished in ``out`` before are not repeated; one that was interrupted goes on. The runs of one
    seed share first weights, batches and augmentation, so the test over seeds is a paired one.

    Returns:
        The comparison, written to ``out`` as ``comparison.json`` and ``comparison.csv`` too, or None when
        it was stopped by ``runtime.max_time``.

    Raises:
        InputError: for whatever the user can mend; RunFailed: when runs failed, after the others finished.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {jobs}")
    if repeated := sorted({method for method in methods if list(methods).count(method) > 1}):
        raise InputError(f"--methods names {repeated[0]!r} twice")
    limit = seconds(runtime.max_time)
    deadline = None if limit is None else time.time() + limit
    if request.teacher is None and any(method != BASELINE for method in methods):
        with_teacher = request_with_teacher(request, default_teacher, runtime, display())
        if with_teacher is None:
            return None
        request = with_teacher
    requests = {method: _with_method(request, method) for method in methods}
    setups = {method: set_up(one) for method, one in requests.items()}
    tasks = [
        Task(
            method,
            replace(requests[method], seed=seed),
            str(out / slug(method) / f"seed-{seed}"),
            runtime,
            deadline,
        )
        for seed in range(seeds)
        for method in methods
    ]
    results = _run_all(tasks, jobs or _default_jobs(runtime))
    if results is None:
        return None
    first = next(iter(setups.values()))
    comparison = Comparison(
        title=f"{request.model} on {first.data.name}",
        teacher=_teacher_record(request),
        student=request.model,
        data=first.data.name,
        rows=_rows(methods, tasks, results),
        command=command,
        software=software(),
    )
    save_comparison(comparison, out / "comparison.json")
    save_csv(comparison, out / "comparison.csv")
    return comparison


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
    if runtime.accelerator != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_all(tasks: Sequence[Task], jobs: int) -> list[dict[str, Any]] | None:
    """Run the tasks in ``jobs`` processes; return their results in order, or None when time ran out."""
    threads = max(1, torch.get_num_threads() // jobs)
    outcomes: list[dict[str, Any] | str | None] = [None] * len(tasks)
    context = multiprocessing.get_context("spawn")
    with (
        _counter(len(tasks)) as count,
        ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        futures: dict[Future[dict[str, Any] | str | None], int] = {
            pool.submit(_run_task, task): place for place, task in enumerate(tasks)
        }
        try:
            for future in as_completed(futures):
                outcomes[futures[future]] = future.result()
                count(tasks[futures[future]], outcomes[futures[future]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [
        f"{task.folder}: {outcome}" for task, outcome in zip(tasks, outcomes, strict=True) if isinstance(outcome, str)
    ]
    if failed:
        raise RunFailed(f"{len(failed)} of {len(tasks)} runs failed; the others are kept. First: {failed[0]}")
    results = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    return results if len(results) == len(tasks) else None


def _run_task(task: Task) -> dict[str, Any] | str | None:
    """Run one task; return its result, the reason of its failure, or None when time ran out."""
    runtime = task.runtime
    if task.deadline is not None:
        left = task.deadline - time.time()
        if left <= 0:
            return None
        runtime = replace(runtime, max_time=f"{left:.3f}")
    try:
        return run(task.request, task.folder, runtime, Silent(), resume=True)
    except (InputError, RunFailed) as error:
        return str(error)


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
