"""Every method with every seed, as a study, and what came of it: of one student, or of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spkd.files import write_json_atomically, write_text_atomically
from spkd.models.saved_model import find_meant
from spkd.studies.options import RunnerOptions
from spkd.studies.outcome import counts_balanced
from spkd.studies.planning import (
    Part,
    begin_anew,
    checked_methods,
    chosen_baseline,
    plan_parts,
    tasks_of,
    with_method,
)
from spkd.studies.records import BASELINE, Comparison, ComparisonRow, comparison_row, error_key, to_csv
from spkd.studies.runner import run_study
from spkd.studies.side_by_side import digits_teacher, teacher_errors
from spkd.training.identity import input_paths
from spkd.training.options import Request, Runtime
from spkd.training.progress import display
from spkd.training.recipe import Select
from spkd.training.run_folder import RunFolder, refuse_inputs

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""What ``result.json`` holds of each run, by method, in the order of the seeds."""


@dataclass(frozen=True)
class Compared:
    """One student, all of whose runs have finished.

    Attributes:
        part: what was run.
        results: what came out.
        comparison: the methods against each other.
    """

    part: Part
    results: Results
    comparison: Comparison


def compare(
    requests: Mapping[str, Request],
    *,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    runtime: Runtime,
    options: RunnerOptions,
    against: str | None = None,
    overwrite: bool = False,
    command: str = "",
) -> list[Compared] | None:
    """Train students with every method and every seed 0 … ``seeds`` - 1, and compare each one's methods.

    Differences are to the method ``against``: by default the student alone, where that is not among the methods the
    first of them. Runs that have finished in ``out`` before are not repeated; one that was interrupted goes on. All
    runs of a student share image size and recipe, and those of one seed share first weights, batches and augmentation,
    so the test over seeds is paired. (But for images without a label: the student alone does not see them, and its
    batches may be smaller where its images are few.)

    Args:
        requests: one for each student, by the folder of its runs below ``out``; that of a single one may be empty.
        methods: ``none``, for the student alone, and others.
        seeds: how many.
        out: folder of the comparison.
        runtime: how runs are carried out.
        options: where they are.
        against: see above.
        overwrite: run again what has finished.
        command: the command line that repeats it.

    Returns:
        The students, whose comparisons are written to their folders as ``comparison.json`` and ``comparison.csv`` too,
        or None when it was stopped by ``runtime.max_time`` or a signal; the same call goes on.

    Raises:
        InputError: for whatever the user can mend.
        RunFailed: when runs failed, after the others finished.
    """
    methods = checked_methods(methods, seeds)
    baseline = chosen_baseline(methods, against)
    for request in requests.values():
        refuse_inputs("--out", out, input_paths(request))
    deadline = runtime.deadline()
    taught = [method for method in methods if method != BASELINE]
    if taught and any(request.teacher is None for request in requests.values()):
        asked = [with_method(request, method) for request in requests.values() for method in taught]
        teacher = digits_teacher(asked, runtime, display())
        if teacher is None:
            return None
        requests = {folder: replace(request, teacher=teacher) for folder, request in requests.items()}
    here = runtime if options.ray is None else None
    parts = plan_parts(requests, methods, out, here, overwrite=overwrite)
    tasks = tasks_of(parts, seeds)
    if overwrite:
        options = replace(options, retry_failed=True)
    anew = partial(begin_anew, tasks, out) if overwrite else None
    state = run_study(tasks, out, options, runtime.until(deadline), display(), first=anew)
    state.raise_failure(out)
    if state.missing:
        return None
    compared = []
    for part in parts:
        results = {
            method: [state.results[part.name(method, seed)] for seed in range(seeds)] for method in part.requests
        }
        comparison = replace(_comparison(part, results, baseline), command=command)
        write_json_atomically(out / part.folder / "comparison.json", asdict(comparison))
        write_text_atomically(out / part.folder / "comparison.csv", to_csv(comparison))
        compared.append(Compared(part, results, comparison))
    return compared


def _comparison(part: Part, results: Results, baseline: str) -> Comparison:
    request, first = next(iter(part.requests.values())), next(iter(results.values()))[0]
    comparison = Comparison(
        title=f"{request.model} on {part.data}",
        teacher=_teacher_record(part, results),
        student=request.model,
        data=part.data,
        rows=_rows(baseline, results, part.select),
        baseline=baseline,
        software=_software(result for own in results.values() for result in own),
        measure=part.select,
        epochs=first.get("epochs"),
        steps={method: own[0]["steps"] for method, own in results.items() if "steps" in own[0]},
    )
    if all(_has_both(result) for own in results.values() for result in own):
        comparison = replace(comparison, other_rows=_rows(baseline, results, comparison.other_measure))
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


def _rows(baseline: str, results: Results, measure: Select) -> tuple[ComparisonRow, ...]:
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
    return tuple(first if method == baseline else row(method, first) for method in results)


def _teacher_record(part: Part, results: Results) -> dict[str, Any]:
    """Return facts of the teacher, with its errors on the students' images: its own run may have seen others."""
    if not part.taught:
        return {}
    teacher = str(part.requests[part.taught[0]].teacher)
    own = {} if find_meant(teacher) is None else RunFolder(Path(teacher)).result() or {}
    facts = {key: own.get(key) for key in ("model", "parameters")} | teacher_errors(results[part.taught[0]][0])
    return {"spec": teacher, **{key: value for key, value in facts.items() if value is not None}}
