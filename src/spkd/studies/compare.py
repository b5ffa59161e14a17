"""Every method with every seed, as a study, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from spkd.data.kept import keeping_last
from spkd.errors import InputError, UnusableFolder
from spkd.files import slug, write_json_atomically, write_text_atomically
from spkd.losses.methods import method_label
from spkd.models.saved_model import find_meant
from spkd.studies.options import RunnerOptions
from spkd.studies.outcome import counts_balanced
from spkd.studies.records import BASELINE, Comparison, ComparisonRow, comparison_row, error_key, to_csv
from spkd.studies.runner import run_study
from spkd.studies.side_by_side import alone_request, request_with_teacher, teacher_errors
from spkd.studies.state import planned, read_running
from spkd.studies.tasks import Recording, Task
from spkd.studies.work import tape_folder
from spkd.training.devices import make_fabric
from spkd.training.identity import input_paths
from spkd.training.options import Request, Runtime
from spkd.training.progress import display
from spkd.training.recipe import Select
from spkd.training.run_folder import RunFolder, refuse_inputs
from spkd.training.setup import pinned, set_up
from spkd.training.tape import Tape


def compare(
    request: Request,
    *,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    runtime: Runtime,
    options: RunnerOptions,
    against: str | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Comparison | None:
    """Train the student with every method and every seed 0 … ``seeds`` - 1, and compare.

    Differences are to the method ``against``: by default the student alone, where that is not among the methods the
    first of them. Runs that have finished in ``out`` before are not repeated; one that was interrupted goes on. All
    share image size and recipe, and those of one seed share first weights, batches and augmentation, so the test over
    seeds is paired. (But for images without a label: the student alone does not see them, and its batches may be
    smaller where its images are few.)

    Returns:
        The comparison, written to ``out`` as ``comparison.json`` and ``comparison.csv`` too, or None when it was
        stopped by ``runtime.max_time`` or a signal; the same call goes on.

    Raises:
        InputError: for whatever the user can mend.
        RunFailed: when runs failed, after the others finished.
    """
    methods = _checked(methods, seeds)
    baseline = _baseline(methods, against)
    refuse_inputs("--out", out, input_paths(request))
    deadline = runtime.deadline()
    taught = [method for method in methods if method != BASELINE]
    if request.teacher is None and taught:
        with_teacher = request_with_teacher(request, taught, runtime, display())
        if with_teacher is None:
            return None
        request = with_teacher
    here = runtime if options.ray is None else None
    requests, data_name, measure = _requests(request, methods, out, here, overwrite=overwrite)
    tasks = _tasks(requests, seeds)
    if overwrite:
        options = replace(options, retry_failed=True)
    anew = partial(_begin_anew, tasks, out) if overwrite else None
    state = run_study(tasks, out, options, runtime.until(deadline), display(), first=anew)
    state.raise_failure(out)
    if state.missing:
        return None
    taught_results = [state.results[_name(method, 0)] for method in taught]
    results = {method: [state.results[_name(method, seed)] for seed in range(seeds)] for method in methods}
    first = results[methods[0]][0]
    comparison = Comparison(
        title=f"{request.model} on {data_name}",
        teacher=_teacher_record(request, taught_results),
        student=request.model,
        data=data_name,
        rows=_rows(methods, baseline, results, measure),
        baseline=baseline,
        command=command,
        software=_software(state.results.values()),
        measure=measure,
        epochs=first.get("epochs"),
        steps={method: own[0]["steps"] for method, own in results.items() if "steps" in own[0]},
    )
    if all(_has_both(result) for own in results.values() for result in own):
        comparison = replace(comparison, other_rows=_rows(methods, baseline, results, comparison.other_measure))
    write_json_atomically(out / "comparison.json", asdict(comparison))
    write_text_atomically(out / "comparison.csv", to_csv(comparison))
    return comparison


def _has_both(result: Mapping[str, Any]) -> bool:
    """Return whether a run has both errors to show: one that an earlier version has begun may lack the balanced one."""
    return counts_balanced(result) and result["val_balanced_error"] is not None


def _software(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the versions that the runs were made with, of a package with several all of them."""
    made_with = [result["software"] for result in results if "software" in result]
    packages = dict.fromkeys(package for versions in made_with for package in versions)
    return {
        package: " or ".join(dict.fromkeys(versions[package] for versions in made_with if package in versions))
        for package in packages
    }


def _begin_anew(tasks: Sequence[Task], out: Path) -> None:
    """Have every task begin anew, tapes included.

    Raises:
        InputError: when another process is at work on one, or plays a tape; nothing has been removed then.
    """
    recordings = {task.name for task in tasks if isinstance(task.work, Recording)}
    players = [name for name, after in planned(out).items() if not recordings.isdisjoint(after)]
    for folder in (*(task.folder(out) for task in tasks), *(out / name for name in players)):
        if (live := read_running(folder)) is not None:
            raise InputError(
                f"--overwrite: {folder} is being worked on by process {live['pid']} on {live['host']}: "
                "wait for its end, or end it"
            )
    for task in tasks:
        if isinstance(task.work, Recording):
            Tape.erase(tape_folder(out, task.name))
            (task.folder(out) / "result.json").unlink(missing_ok=True)
        else:
            RunFolder(task.folder(out)).begin_anew()


def _checked(methods: Sequence[str], seeds: int) -> list[str]:
    """Return the methods in their usual spelling; refuse what needs neither images nor networks to be refused."""
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    labels = [method_label(method) for method in methods]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"--methods names {repeated[0]!r} twice")
    return labels


def _baseline(methods: Sequence[str], against: str | None) -> str:
    """Return the method that the others are compared with."""
    if against is None:
        return BASELINE if BASELINE in methods else methods[0]
    label = method_label(against)
    if label not in methods:
        raise InputError(f"--against {against} is not among the --methods: {', '.join(methods)}")
    return label


@keeping_last()
def _requests(
    request: Request, methods: Sequence[str], out: Path, here: Runtime | None, *, overwrite: bool
) -> tuple[dict[str, Request], str, Select]:
    """Return each method's request, all with one image size and recipe, the data's name, and what epochs are kept by.

    Each is tried once. What is to be said of the images, and what is warned of, is said once. ``here`` is how they run
    where that is on this machine.

    Raises:
        InputError: as :func:`spkd.training.setup.set_up` does, when the device or its precision is not to be had here,
            and when ``out`` holds runs that are made of others.
    """
    leading = next((method for method in methods if method != BASELINE), BASELINE)
    first = set_up(_with_method(request, leading))
    if here is not None:
        make_fabric(here, first.recipe.precision)
    requests = {method: _with_method(pinned(request, first), method) for method in methods}
    notes = list(first.notes_of_data)
    for method, one in requests.items():
        setup = set_up(one)
        notes += [note for note in setup.notes if note.startswith("warning:")]
        is_first = True
        for path in sorted((out / slug(method)).glob("seed-*")):
            folder, seed = RunFolder(path), path.name.removeprefix("seed-")
            if overwrite or not seed.isdigit() or not folder.has_begun():
                continue
            own = replace(setup, request=replace(one, seed=int(seed)))
            # Of one run for each method all is looked at, files and images too, which takes long for all of them.
            if is_first or folder.config() != own.config():
                is_first = False
                try:
                    folder.refuse_other(own.config(), own.identity())
                except UnusableFolder as error:  # whose advice is for a run by itself
                    raise InputError(
                        f"{error.what}: give another --out, the options that it was made with, or --overwrite"
                    ) from error
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, not a folder")
    for note in dict.fromkeys(notes):
        display().say(note)
    return requests, first.data.name, first.recipe.select


def _tasks(requests: Mapping[str, Request], seeds: int) -> list[Task]:
    """Return the runs, and for each seed a recording of what the teacher says where several students listen to it."""
    taught = [method for method, request in requests.items() if request.teacher is not None]
    tasks = []
    for seed in range(seeds):
        tape = f"recordings/seed-{seed}"
        if len(taught) > 1:
            recording = Recording(replace(requests[taught[0]], seed=seed), tuple(taught))
            tasks.append(Task(tape, recording, labels={"seed": seed}))
        for method, request in requests.items():
            after = (tape,) if method in taught and len(taught) > 1 else ()
            own = replace(request, seed=seed)
            tasks.append(Task(_name(method, seed), own, after, labels={"method": method, "seed": seed}))
    return tasks


def _name(method: str, seed: int) -> str:
    return f"{slug(method)}/seed-{seed}"


def _with_method(request: Request, method: str) -> Request:
    return alone_request(request) if method == BASELINE else replace(request, method=method)


def _rows(
    methods: Sequence[str], baseline: str, results: Mapping[str, Sequence[Mapping[str, Any]]], measure: Select
) -> tuple[ComparisonRow, ...]:
    def row(method: str, compared_with: ComparisonRow | None) -> ComparisonRow:
        own = results[method]
        return comparison_row(
            method,
            seeds=[result["seed"] for result in own],
            test_errors=[result[error_key("test", measure)] for result in own],
            val_errors=[result[error_key("val", measure)] for result in own],
            baseline=compared_with,
        )

    first = row(baseline, None)
    return tuple(first if method == baseline else row(method, first) for method in methods)


def _teacher_record(request: Request, students: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return facts of the teacher, with its errors on the students' images: its own run may have seen others."""
    if request.teacher is None:
        return {}
    own = {} if find_meant(request.teacher) is None else RunFolder(Path(request.teacher)).result() or {}
    facts = {key: own.get(key) for key in ("model", "parameters")} | (teacher_errors(students[0]) if students else {})
    return {"spec": request.teacher, **{key: value for key, value in facts.items() if value is not None}}
