"""Records are paired by seed and written as other programs read them, and rows that do not fit are refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from spkd.errors import InputError
from spkd.files import write_json_atomically
from spkd.studies.records import Comparison, comparison_row, to_csv, weak_teacher

NONE = comparison_row("none", [0, 1, 2, 3], [3.4, 3.9, 3.1, 4.0], [2.0, 2.4, 2.1, 2.2])
SP = comparison_row("sp", [3, 1, 2, 0], [2.2, 2.0, 2.4, 2.3], [1.0, 1.1, 1.2, 1.3], NONE)
ONCE = comparison_row("kd", [0], [3.0], [2.0], NONE)
COMPARISON = Comparison(
    title="Ziffern – 8×8",
    teacher={"spec": "wrn-28-2", "parameters": 1_467_610, "test_error": 1.9, "pretrained": False},
    student="wrn-10-1",
    data="digits",
    rows=(NONE, SP, ONCE),
    command="spkd compare --methods none sp",
    software={"torch": "2.14.1"},
)


def test_a_row_is_paired_by_seed_and_not_by_position() -> None:
    by_seed = scipy.stats.ttest_rel([2.3, 2.0, 2.4, 2.2], [3.4, 3.9, 3.1, 4.0])
    assert SP.p_value == pytest.approx(by_seed.pvalue, rel=1e-9)
    assert SP.difference == pytest.approx((2.2 + 2.0 + 2.4 + 2.3 - 3.4 - 3.9 - 3.1 - 4.0) / 4)
    assert SP.seeds == (3, 1, 2, 0)
    assert SP.median == pytest.approx(2.25)


def test_only_seeds_of_both_are_compared_but_all_are_summarised() -> None:
    row = comparison_row("at", [2, 3, 9], [3.0, 4.0, 50.0], [0.0, 0.0, 0.0], NONE)
    assert row.difference == pytest.approx(((3.0 - 3.1) + (4.0 - 4.0)) / 2)
    assert row.mean == pytest.approx(19.0)
    assert (row.pairs, SP.pairs, NONE.pairs) == (2, 4, None)


def test_no_common_seed_gives_no_difference() -> None:
    row = comparison_row("at", [8, 9], [3.0, 4.0], [0.0, 0.0], NONE)
    assert (row.difference, row.interval, row.p_value, row.pairs) == (None, None, None, None)
    assert row.sem is not None


def test_the_student_alone_and_a_single_seed_have_no_test() -> None:
    assert (NONE.difference, NONE.interval, NONE.p_value) == (None, None, None)
    assert ONCE.difference == pytest.approx(-0.4)
    assert (ONCE.sem, ONCE.interval, ONCE.p_value) == (None, None, None)


@pytest.mark.parametrize(
    ("seeds", "test_errors", "val_errors", "message"),
    [
        ([1, 1], [2.0, 3.0], [1.0, 1.0], r"seeds: expected each once for 'sp', got \[1, 1\]"),
        ([1, 2], [2.0], [1.0, 1.0], "one for each of the 2 seeds of 'sp', got 1 and 2"),
        ([], [], [], "expected one value or more"),
        ([1], [math.nan], [1.0], "expected finite numbers"),
        ([1], [1.0], [math.inf], "expected finite numbers"),
    ],
)
def test_rows_that_do_not_fit_are_input_errors(
    seeds: list[int], test_errors: list[float], val_errors: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        comparison_row("sp", seeds, test_errors, val_errors)


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """What the file of the comparison holds."""
    write_json_atomically(tmp_path / "comparison.json", dataclasses.asdict(COMPARISON))
    return json.loads((tmp_path / "comparison.json").read_text())


def test_the_json_file_holds_the_comparison(data: Any) -> None:
    assert (data["title"], data["teacher"], data["software"]) == (
        COMPARISON.title,
        COMPARISON.teacher,
        {"torch": "2.14.1"},
    )
    assert [row["method"] for row in data["rows"]] == ["none", "sp", "kd"]
    assert [row["pairs"] for row in data["rows"]] == [None, 4, 1]


def test_the_json_file_has_the_rows_that_other_programs_read(data: Any) -> None:
    wanted = ["method", "seeds", "test_errors", "median", "mean", "sem"]
    wanted += ["difference", "interval", "p_value"]
    assert [set(wanted) <= set(row) for row in data["rows"]] == [True] * 3
    assert data["rows"][1]["interval"] == list(SP.interval or ())
    assert data["rows"][0]["p_value"] is None


def test_csv_has_both_measures_where_both_are_known() -> None:
    plain = dataclasses.replace(COMPARISON, rows=(NONE, SP), other_rows=(SP, NONE))
    assert to_csv(plain).splitlines()[:2] == [
        "method,seed,test_error,val_error,test_balanced_error,val_balanced_error",
        "none,0,3.4,2.0,2.2,1.0",
    ]
    balanced = dataclasses.replace(plain, measure="balanced")
    headings = "method,seed,test_balanced_error,val_balanced_error,test_error,val_error"
    assert to_csv(balanced).splitlines()[0] == headings


@pytest.mark.parametrize(
    ("balanced", "weak", "harm"),
    [
        ((None, 6.0), True, True),
        ((6.0, 6.0), True, True),
        ((5.0, 6.0), True, False),
    ],
)
def test_a_teacher_that_is_weak_by_one_measure_is_not_said_to_do_harm(
    balanced: tuple[float | None, float | None], weak: bool, harm: bool
) -> None:
    said = weak_teacher(3.0, 2.0, balanced)
    assert (said is not None, "may do harm" in str(said)) == (weak, harm)
    assert ("balanced" in str(said)) == (None not in balanced)
    assert (weak_teacher(1.0, 2.0, balanced) is not None) == (balanced == (6.0, 6.0))


def test_csv_has_one_line_for_each_run() -> None:
    odd = dataclasses.replace(COMPARISON, rows=(dataclasses.replace(SP, method='my.py:Loss?name="a,b"'),))
    lines = list(csv.DictReader(io.StringIO(to_csv(odd), newline="")))
    assert [line["method"] for line in lines] == ['my.py:Loss?name="a,b"'] * 4
    assert [(int(line["seed"]), float(line["test_error"])) for line in lines] == [
        (3, 2.2),
        (1, 2.0),
        (2, 2.4),
        (0, 2.3),
    ]
