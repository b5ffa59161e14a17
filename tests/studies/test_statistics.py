"""Statistics held against hand-worked values, published data and scipy by another route."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
from helpers import CASES
from hypothesis import assume, given
from hypothesis import strategies as st

from spkd.errors import InputError
from spkd.studies.statistics import compare_paired, rising, summarise

# Student's sleep data (Biometrika 1908): hours gained with two drugs by ten patients; R's t.test gives
# t = -4.0621, df = 9, p-value = 0.002833, 95 percent confidence interval -2.4598858 -0.7001142.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

errors = st.floats(min_value=0, max_value=100, allow_nan=False)


def test_summary_by_hand() -> None:
    summary = summarise([3.0, 1.0, 2.0, 6.0])
    assert (summary.median, summary.mean) == (2.5, 3.0)
    # Squares 0, 4, 1, 9: variance 14/3, standard error sqrt(14/3)/2.
    assert summary.sem == pytest.approx(math.sqrt(14 / 3) / 2, rel=1e-14)


def test_a_single_value_has_no_standard_error() -> None:
    summary = summarise([4.5])
    assert (summary.median, summary.mean, summary.sem) == (4.5, 4.5, None)


def test_students_sleep_data() -> None:
    comparison = compare_paired(DRUG_1, DRUG_2)
    assert comparison.difference == pytest.approx(-1.58)
    assert comparison.p_value == pytest.approx(0.002833, abs=5e-7)
    assert comparison.interval == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_two_pairs_follow_the_cauchy_distribution() -> None:
    # One degree of freedom: p = 1 - (2/pi) atan|t|; differences -1 and -3, t = -2 / 1.
    comparison = compare_paired([1.0, 1.0], [2.0, 4.0])
    assert comparison.p_value == pytest.approx(1 - 2 / math.pi * math.atan(2), rel=1e-12)
    reach = math.tan(math.pi * 0.95 / 2)
    # Of this quantile SciPy gives ten digits before its version 1.16.
    assert comparison.interval == pytest.approx((-2 - reach, -2 + reach), rel=1e-10)


@given(st.lists(st.tuples(errors, errors), min_size=2, max_size=12))
def test_equals_scipys_test_and_interval_on_the_differences(pairs: list[tuple[float, float]]) -> None:
    values, baseline = [a for a, _ in pairs], [b for _, b in pairs]
    differences = [a - b for a, b in pairs]
    assume(max(differences) - min(differences) > 1e-6)
    test = scipy.stats.ttest_1samp(differences, 0.0)
    comparison = compare_paired(values, baseline)
    assert comparison.p_value == pytest.approx(test.pvalue, rel=1e-6, abs=1e-300)
    assert comparison.interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(errors, errors), min_size=1, max_size=6))
def test_exchanging_the_two_sides_turns_the_sign(pairs: list[tuple[float, float]]) -> None:
    there = compare_paired([a for a, _ in pairs], [b for _, b in pairs])
    back = compare_paired([b for _, b in pairs], [a for a, _ in pairs])
    assert back.difference == -there.difference
    assert back.p_value == pytest.approx(there.p_value)


def test_the_pairing_matters() -> None:
    # The same values, paired otherwise: seeds that are hard for both no longer cancel.
    paired = compare_paired([1.0, 5.0, 9.0], [2.0, 6.5, 10.0])
    crossed = compare_paired([1.0, 5.0, 9.0], [10.0, 6.5, 2.0])
    assert paired.p_value is not None
    assert crossed.p_value is not None
    assert paired.p_value < 0.05 < crossed.p_value


def test_one_pair_has_a_difference_only() -> None:
    comparison = compare_paired([2.0], [3.5])
    assert (comparison.difference, comparison.interval, comparison.p_value) == (-1.5, None, None)


@pytest.mark.parametrize("baseline", [[3.4, 3.3, 7.1], [3.1, 3.0, 6.8]])
def test_equal_differences_claim_no_certainty(baseline: list[float]) -> None:
    comparison = compare_paired([3.4, 3.3, 7.1], baseline)
    assert comparison.difference == pytest.approx(3.4 - baseline[0])
    assert comparison.interval is None
    assert comparison.p_value is None


def test_differences_that_rounding_alone_tells_apart_claim_no_certainty() -> None:
    values, baseline = [3.4, 0.7, 8.7], [3.1, 0.4, 8.4]
    assert len({one - other for one, other in zip(values, baseline, strict=True)}) > 1
    assert compare_paired(values, baseline).p_value is None


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [
        ([], [], "values: expected one value or more"),
        ([1.0, 2.0], [1.0], "one value for each of the 2 values, got 1"),
        ([1.0, math.nan], [1.0, 2.0], "values: expected finite numbers"),
        ([1.0, 2.0], [1.0, math.inf], "baseline: expected finite numbers"),
    ],
)
def test_what_cannot_be_compared_is_an_input_error(values: list[float], baseline: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_paired(values, baseline)


def page_by_counting(columns: list[list[float]]) -> float:
    """Return the share of all orders within seeds whose L is as large, counted one by one."""
    size = len(columns)

    def trend(ranks: tuple[int, ...]) -> int:
        return sum((place + 1) * rank for place, rank in enumerate(ranks))

    rows = list(zip(*columns, strict=True))
    found = sum(trend(tuple(sorted(row).index(value) + 1 for value in row)) for row in rows)
    each = [trend(ranks) for ranks in itertools.permutations(range(1, size + 1))]
    totals = [sum(chosen) for chosen in itertools.product(each, repeat=len(rows))]
    return sum(total >= found for total in totals) / len(totals)


@CASES
@given(st.lists(st.permutations([8.0, 8.5, 9.0, 9.5]), min_size=2, max_size=3))
def test_pages_trend_test_counts_orders(rows: list[list[float]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    assert rising(columns) == pytest.approx(page_by_counting(columns), rel=1e-12)


def test_one_seed_is_no_trend() -> None:
    assert rising([[6.0], [7.0], [8.0]]) is None


def test_a_trend_in_every_seed_is_as_unlikely_as_its_orders() -> None:
    fallen = [[9.0, 9.1], [8.0, 8.1], [7.0, 7.1], [6.0, 6.1]]
    assert rising(fallen) == 1.0
    assert rising(fallen[::-1]) == pytest.approx(1 / 24**2, rel=1e-12)


@pytest.mark.parametrize(
    "columns", [[[1.0], [2.0]], [[1.0], [2.0], [3.0, 4.0]], [[], [], []], [[1.0], [2.0], [math.nan]]]
)
def test_a_trend_needs_three_whole_columns(columns: list[list[float]]) -> None:
    with pytest.raises(InputError, match="columns: expected"):
        rising(columns)
