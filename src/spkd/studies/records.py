"""Networks and methods side by side, as data: what was run, with what, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spkd.errors import InputError
from spkd.files import csv_text
from spkd.studies.statistics import PairedComparison, compare_paired, summarise
from spkd.training.recipe import Select

BASELINE = "none"
"""The student alone."""
UNLIKE = 1.1
"""How many times the steps of one training another has from which on it is said beside their errors."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method's results; errors are in percent, by one measure: top-1 errors, or balanced ones.

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
        teacher: facts of the teacher: ``spec``, ``parameters``, ``test_error``, ``test_balanced_error`` (percent) and
            what else there is.
        student: the student's model spec.
        data: the data's name.
        rows: one for each method, in the order they were asked for, by the measure.
        baseline: the method that the others' differences are to.
        command: the command line that repeats the comparison.
        software: versions by package name.
        measure: what the errors of ``rows`` are: ``error``, the share of images, or ``balanced``, the mean of the
            classes' own errors.
        other_rows: the same by the other measure, where it is shown too.
        epochs: of each run, where they are known.
        steps: of a run, by method, where they are known.
    """

    title: str
    teacher: Mapping[str, str | int | float | bool | None]
    student: str
    data: str
    rows: tuple[ComparisonRow, ...]
    baseline: str = BASELINE
    command: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    measure: Select = "error"
    other_rows: tuple[ComparisonRow, ...] = ()
    epochs: int | None = None
    steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def other_measure(self) -> Select:
        """What the errors of ``other_rows`` are."""
        return "error" if self.measure == "balanced" else "balanced"

    def teacher_error(self, measure: Select) -> float | None:
        """Return the teacher's test error in percent by one measure, None where it is not known."""
        error = self.teacher.get(error_key("test", measure))
        return float(error) if isinstance(error, int | float) else None


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
        test_balanced_error: mean of the classes' own test errors, in percent; None where it is not to be shown.
        steps: of training, where that is of this run and known.
    """

    label: str
    model: str
    parameters: int
    multiply_adds: int
    latency_ms: float
    test_error: float | None
    val_error: float | None
    epochs: int | None = None
    test_balanced_error: float | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One student to choose; errors are in percent, by the measure of the choice.

    Attributes:
        student: its model spec.
        parameters: how many.
        multiply_adds: of one image.
        latency_ms: of one image on the CPU, in milliseconds.
        method: the one with the lowest mean validation error, of several the first.
        val_error: that error.
        row: of that method.
        alone: of the student alone; None where it was not trained.
        is_efficient: whether no other candidate is both as quick and as good on the validation images, and better in
            one of the two.
    """

    student: str
    parameters: int
    multiply_adds: int
    latency_ms: float
    method: str
    val_error: float
    row: ComparisonRow
    alone: ComparisonRow | None
    is_efficient: bool


@dataclass(frozen=True)
class Choice:
    """Students to choose from.

    Attributes:
        data: the images' name.
        candidates: the students, the quickest first.
        teacher: what it costs, and its errors on the same images; None where no method has one.
        measure: what the errors are, as of :class:`Comparison`.
        command: the command line that repeats it.
    """

    data: str
    candidates: tuple[Candidate, ...]
    teacher: NetworkRow | None = None
    measure: Select = "error"
    command: str = ""

    @property
    def teacher_error(self) -> float | None:
        """The teacher's test error in percent, by the measure; None where it is not known."""
        if self.teacher is None:
            return None
        return self.teacher.test_balanced_error if self.measure == "balanced" else self.teacher.test_error


def error_key(split: str, measure: Select) -> str:
    """Return what a result calls an error.

    >>> error_key("val", "balanced")
    'val_balanced_error'
    """
    return f"{split}_balanced_error" if measure == "balanced" else f"{split}_error"


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


def weak_teacher(
    teacher: float | None, alone: float | None, balanced: tuple[float | None, float | None] = (None, None)
) -> str | None:
    """Return a warning where a teacher's error, in percent, is not below that of the student alone; else None.

    ``balanced`` are the balanced errors of both, where they count too. What is no better by one of the two only is not
    said to do harm.

    >>> weak_teacher(42.27, 42.17)
    'the teacher (42.27 %) is no better than the student alone (42.17 %): it may do harm; a better one would teach more'
    >>> weak_teacher(37.85, 42.17)
    >>> "do harm" in weak_teacher(42.27, 42.17, (50.1, 52.3)), "do harm" in weak_teacher(42.27, 42.17, (52.3, 50.1))
    (False, True)
    """
    if teacher is None or alone is None:
        return None
    of_teacher, of_alone = balanced
    if of_teacher is None or of_alone is None:
        told, others, is_weak = f"{teacher:.2f} %", f"{alone:.2f} %", [teacher >= alone]
    else:
        told, others = f"{teacher:.2f} %, balanced {of_teacher:.2f} %", f"{alone:.2f} %, balanced {of_alone:.2f} %"
        is_weak = [teacher >= alone, of_teacher >= of_alone]
    if not any(is_weak):
        return None
    if all(is_weak):
        return (
            f"the teacher ({told}) is no better than the student alone ({others}): it may do harm; a better one would "
            "teach more"
        )
    which = "error" if is_weak[0] else "balanced error"
    return (
        f"the teacher ({told}) is no better than the student alone ({others}) by the {which}, and better by the other"
    )


def unlike_steps(alone: int | None, taught: int | None, epochs: int | None) -> tuple[str, int] | None:
    """Return the steps of the student alone and of one with a teacher in words, and the epochs that give it as many.

    ``epochs`` are those of the student alone. None where the numbers are alike or not known; with images that have no
    label, which only a teacher can speak of, an epoch is more steps.

    >>> unlike_steps(7_860, 290_000, 30)
    ('the student alone had 7,860 steps, with the teacher 290,000', 1107)
    >>> unlike_steps(7_860, 8_000, 30), unlike_steps(None, 8_000, 30)
    (None, None)
    """
    if not (alone and taught and epochs) or max(alone, taught) <= UNLIKE * min(alone, taught):
        return None
    as_many = max(1, round(epochs * taught / alone))
    return (
        None if as_many == epochs else (f"the student alone had {alone:,} steps, with the teacher {taught:,}", as_many)
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
    """Return one line for each run: method, seed, test_error, val_error (percent), by the other measure too if known.

    >>> row = comparison_row("sp", [1, 2], [2.5, 3.0], [1.0, 1.5])
    >>> print(to_csv(Comparison("Digits", {}, "wrn-10-1", "digits", (row,))), end="")
    method,seed,test_error,val_error
    sp,1,2.5,1.0
    sp,2,3.0,1.5
    """
    measures, sides = [comparison.measure], [comparison.rows]
    if comparison.other_rows:
        measures.append(comparison.other_measure)
        sides.append(comparison.other_rows)
    runs = [
        (row.method, *run)
        for row, *others in zip(*sides, strict=True)
        for run in zip(
            row.seeds, *(errors for one in (row, *others) for errors in (one.test_errors, one.val_errors)), strict=True
        )
    ]
    headings = [error_key(split, measure) for measure in measures for split in ("test", "val")]
    return csv_text([("method", "seed", *headings), *runs])
