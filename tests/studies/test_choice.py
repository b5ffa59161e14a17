"""Which student to choose: held against a look at every pair."""

from __future__ import annotations

import itertools
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spkd.studies.choice import choice_of
from spkd.studies.records import Comparison, NetworkRow, comparison_row


def comparison(name: str, val_errors: dict[str, list[float]]) -> Comparison:
    seeds = range(len(next(iter(val_errors.values()))))
    rows = tuple(comparison_row(method, seeds, [9.0 for _ in seeds], errors) for method, errors in val_errors.items())
    return Comparison(name, {}, name, "digits", rows, command="spkd compare")


def cost(name: str, latency_ms: float) -> NetworkRow:
    return NetworkRow(name, name, 10, 20, latency_ms, test_error=9.0, val_error=9.0)


def test_the_method_is_the_one_that_the_validation_images_prefer() -> None:
    one = comparison("a", {"none": [3.0, 5.0], "sp": [2.0, 3.0], "kd": [1.0, 4.0]})
    [candidate] = choice_of([one], [cost("a", 1.5)], None).candidates
    assert (candidate.method, candidate.val_error) == ("sp", 2.5)  # kd's mean is the same, and it comes later
    assert candidate.row == one.rows[1]
    assert candidate.alone == one.rows[0]
    assert (candidate.student, candidate.parameters, candidate.multiply_adds, candidate.latency_ms) == (
        "a",
        10,
        20,
        1.5,
    )
    assert candidate.is_efficient
    [untaught] = choice_of([comparison("a", {"sp": [2.0]})], [cost("a", 1.5)], None).candidates
    assert untaught.alone is None


places = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=6)


@given(places)
def test_one_is_efficient_unless_another_beats_it(places: list[tuple[int, int]]) -> None:
    names = [f"student{number}" for number in range(len(places))]
    choice = choice_of(
        [comparison(name, {"none": [float(error)]}) for name, (_, error) in zip(names, places, strict=True)],
        [cost(name, float(latency)) for name, (latency, _) in zip(names, places, strict=True)],
        None,
    )
    assert sorted(one.student for one in choice.candidates) == names
    assert all(a.latency_ms <= b.latency_ms for a, b in itertools.pairwise(choice.candidates))
    for one in choice.candidates:
        beaten = [
            other
            for other in choice.candidates
            if (other.latency_ms < one.latency_ms and other.val_error <= one.val_error)
            or (other.latency_ms <= one.latency_ms and other.val_error < one.val_error)
        ]
        assert one.is_efficient == (not beaten)


@pytest.mark.parametrize(("measure", "error"), [("error", 4.0), ("balanced", 6.0)])
def test_the_teachers_error_is_of_the_measure(measure: str, error: float) -> None:
    teacher = NetworkRow("teacher", "large", 1, 1, 1.0, test_error=4.0, val_error=5.0, test_balanced_error=6.0)
    one = comparison("a", {"none": [3.0]})
    compared = Comparison(one.title, {}, "a", "digits", one.rows, measure=measure)
    choice = choice_of([compared], [cost("a", 1.0)], teacher)
    assert choice.measure == measure
    assert choice.teacher_error == error
    assert choice_of([compared], [cost("a", 1.0)], None).teacher_error is None
    assert mean(compared.rows[0].val_errors) == choice.candidates[0].val_error
