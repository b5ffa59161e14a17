"""Networks and methods side by side, as data: what was run, with what, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spkd.errors import InputError
from spkd.files import csv_text
from spkd.studies.statistics import PairedComparison, compare_paired, summarise

BASELINE = "none"
"""The student alone."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method's results; errors are top-1 errors in percent.

    Attributes:
        method: as given on the command line, such as ``sp+kd``.
        seeds: of the runs; ``test_errors`` and ``val_errors`` are in their order.
        test_errors: on the test images, after training.
        val_errors: on the validation images, which hyper-parameters are chosen on.
        median: of the test errors.
        mean: of the test errors.
        sem: standard error of the mean; None with one seed.
        difference: mean of test error minus that of the baseline with the same seed; None for the baseline, and when
            no seed was run with both.
        interval: 95 % confidence interval of the difference; see
            :class:`~spkd.studies.statistics.PairedComparison` for when there is none.
        p_value: of the two-sided paired t-test against the baseline, under the same condition.
        pairs: how many seeds were run with both, which difference, interval and p-value are of; None where there is no
            difference.
    """

    method: str
    seeds: tuple[int, ...]
    test_errors: tuple[float, ...]
    val_errors: tuple[float, ...]
    median: float
    mean: float
    sem: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    pairs: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Methods against each other, and what is needed to repeat it.

    Attributes:
        title: one line, for the head of a table or figure.
        teacher: facts of the teacher: ``spec``, ``parameters``, ``test_error`` (percent) and
            what else there is.
        student: the student's model spec.
        data: the data's name.
        rows: one for each method, in the order they were asked for.
        baseline: the method that the others' differences are to.
        command: the command line that repeats the comparison.
        software: versions by package name.
    """

    title: str
    teacher: Mapping[str, str | int | float | bool | None]
    student: str
    data: str
    rows: tuple[ComparisonRow, ...]
    baseline: str = BASELINE
    command: str = ""
    software: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkRow:
    """One network in a side-by-side table.

    Attributes:
        label: its part: teacher, student alone, student with a method.
        model: its spec.
        parameters: how many.
        multiply_adds: of one image.
        latency_ms: of one image on the CPU, median, in milliseconds.
        test_error: top-1, in percent; None where it was not measured.
        val_error: likewise, on the validation images.
        epochs: of training, where that is of this run.
    """

    label: str
    model: str
    parameters: int
    multiply_adds: int
    latency_ms: float
    test_error: float | None
    val_error: float | None
    epochs: int | None = None


def comparison_row(
    method: str,
    seeds: Sequence[int],
    test_errors: Sequence[float],
    val_errors: Sequence[float],
    baseline: ComparisonRow | None = None,
) -> ComparisonRow:
    """Return a method's row, compared with ``baseline`` over the seeds that both were run with.

    Raises:
        InputError: when the lengths differ, there is no seed, a seed comes twice, or an error is not finite.

    >>> none = comparison_row("none", [1, 2, 3], [3.0, 4.0, 3.5], [2.0, 2.0, 2.0])
    >>> sp = comparison_row("sp", [3, 2, 1], [2.5, 3.0, 2.5], [1.0, 1.0, 1.0], none)
    >>> round(sp.difference, 3), round(sp.p_value, 3)
    (-0.833, 0.038)
    """
    if len(set(seeds)) != len(seeds):
        raise InputError(f"seeds: expected each once for {method!r}, got {list(seeds)}; leave out the repeated runs")
    if not len(seeds) == len(test_errors) == len(val_errors):
        raise InputError(
            f"test_errors, val_errors: expected one for each of the {len(seeds)} seeds of {method!r}, "
            f"got {len(test_errors)} and {len(val_errors)}"
        )
    summary = summarise(test_errors)
    summarise(val_errors)  # for its check alone: JSON has no NaN
    paired = _paired(dict(zip(seeds, test_errors, strict=True)), baseline)
    return ComparisonRow(
        method=method,
        seeds=tuple(seeds),
        test_errors=tuple(test_errors),
        val_errors=tuple(val_errors),
        median=summary.median,
        mean=summary.mean,
        sem=summary.sem,
        difference=None if paired is None else paired.difference,
        interval=None if paired is None else paired.interval,
        p_value=None if paired is None else paired.p_value,
        pairs=None if paired is None else paired.pairs,
    )


def weak_teacher(teacher: float | None, alone: float | None) -> str | None:
    """Return a warning where a teacher's error, in percent, is not below that of the student alone; else None.

    >>> weak_teacher(42.27, 42.17)
    'the teacher (42.27 %) is no better than the student alone (42.17 %): it may do harm, a better one would teach more'
    >>> weak_teacher(37.85, 42.17)
    """
    if teacher is None or alone is None or teacher < alone:
        return None
    return (
        f"the teacher ({teacher:.2f} %) is no better than the student alone ({alone:.2f} %): it may do harm, a better "
        "one would teach more"
    )


def _paired(errors: Mapping[int, float], baseline: ComparisonRow | None) -> PairedComparison | None:
    if baseline is None:
        return None
    alone = dict(zip(baseline.seeds, baseline.test_errors, strict=True))
    common = [seed for seed in errors if seed in alone]
    if not common:
        return None
    return compare_paired([errors[seed] for seed in common], [alone[seed] for seed in common])


def to_csv(comparison: Comparison) -> str:
    """Return one line for each run: method, seed, test_error, val_error (percent).

    >>> row = comparison_row("sp", [1, 2], [2.5, 3.0], [1.0, 1.5])
    >>> print(to_csv(Comparison("Digits", {}, "wrn-10-1", "digits", (row,))), end="")
    method,seed,test_error,val_error
    sp,1,2.5,1.0
    sp,2,3.0,1.5
    """
    runs = [
        (row.method, *run)
        for row in comparison.rows
        for run in zip(row.seeds, row.test_errors, row.val_errors, strict=True)
    ]
    return csv_text([("method", "seed", "test_error", "val_error"), *runs])
