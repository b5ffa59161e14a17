"""Several students to choose from: what each costs, and how well it does by the method that suits it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from spkd.files import write_json_atomically
from spkd.studies.compare import Compared
from spkd.studies.records import BASELINE, Comparison, ComparisonRow, NetworkRow
from spkd.studies.side_by_side import network_row, teacher_row
from spkd.training.recipe import Select

ROUNDS = 3
"""How often the latency of all is measured, in turn; of each the lowest counts, which other programs delayed least."""


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
        measure: what the errors are, as of :class:`~spkd.studies.records.Comparison`.
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


def choose(compared: Sequence[Compared], out: Path) -> Choice:
    """Measure on this machine what each student costs, and put its errors beside it.

    Returns:
        The choice, written to ``out`` as ``students.json`` too.

    Raises:
        InputError: when a network cannot be loaded again.
    """
    rounds = [_measured(compared, out) for _ in range(ROUNDS)]
    costs = [replace(rows[0], latency_ms=min(row.latency_ms for row in rows)) for rows in zip(*rounds, strict=True)]
    teacher = costs.pop() if compared[0].part.taught else None
    choice = choice_of([one.comparison for one in compared], costs, teacher)
    write_json_atomically(out / "students.json", asdict(choice))
    return choice


def _measured(compared: Sequence[Compared], out: Path) -> list[NetworkRow]:
    """Measure each student, and last its teacher where there is one."""
    rows = []
    for one in compared:
        method, results = next(iter(one.results.items()))  # the network is the same by each
        rows.append(network_row(one.comparison.student, out / one.part.name(method, 0), results[0]))
    first = compared[0]
    if first.part.taught:
        method = first.part.taught[0]
        rows.append(teacher_row(first.part.requests[method], first.results[method][0]))
    return rows


def choice_of(comparisons: Sequence[Comparison], costs: Sequence[NetworkRow], teacher: NetworkRow | None) -> Choice:
    """Return the choice among students, each with its comparison and what it costs."""
    best = [min(comparison.rows, key=lambda row: mean(row.val_errors)) for comparison in comparisons]
    places = [(cost.latency_ms, mean(row.val_errors)) for cost, row in zip(costs, best, strict=True)]
    candidates = [
        Candidate(
            student=comparison.student,
            parameters=cost.parameters,
            multiply_adds=cost.multiply_adds,
            latency_ms=cost.latency_ms,
            method=row.method,
            val_error=place[1],
            row=row,
            alone=next((one for one in comparison.rows if one.method == BASELINE), None),
            is_efficient=not any(_is_better(other, place) for other in places),
        )
        for comparison, cost, row, place in zip(comparisons, costs, best, places, strict=True)
    ]
    return Choice(
        data=comparisons[0].data,
        candidates=tuple(sorted(candidates, key=lambda one: one.latency_ms)),
        teacher=teacher,
        measure=comparisons[0].measure,
        command=comparisons[0].command,
    )


def _is_better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether one is in nothing above the other, and in something below it.

    >>> _is_better((1.0, 5.0), (1.0, 6.0)), _is_better((1.0, 5.0), (1.0, 5.0)), _is_better((1.0, 5.0), (2.0, 4.0))
    (True, False, False)
    """
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
