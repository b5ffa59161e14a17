"""Several students to choose from: what each costs, and how well it does by the method that suits it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from spkd.files import write_json_atomically
from spkd.studies.compare import Compared
from spkd.studies.records import BASELINE, Candidate, Choice, Comparison, NetworkRow
from spkd.studies.side_by_side import measured, saved_network, teacher_of

ROUNDS = 3
"""In how many rounds latencies are measured."""


def choose(compared: Sequence[Compared], out: Path) -> Choice:
    """Measure on this machine what each student costs, and put its errors beside it.

    Returns:
        The choice, written to ``out`` as ``students.json`` too.

    Raises:
        InputError: when a network cannot be loaded again.
    """
    networks = []
    for one in compared:
        method, results = next(iter(one.results.items()))  # the network is the same by each
        networks.append(saved_network(one.comparison.student, out / one.part.name(method, 0), results[0]))
    first = compared[0]
    if first.part.taught:
        method = first.part.taught[0]
        networks.append(teacher_of(first.part.requests[method], first.results[method][0]))
    costs = measured(networks, ROUNDS)
    teacher = costs.pop() if first.part.taught else None
    choice = choice_of([one.comparison for one in compared], costs, teacher)
    write_json_atomically(out / "students.json", asdict(choice))
    return choice


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
