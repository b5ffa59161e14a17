"""Tables show what the record holds, rounded, and nothing that it does not."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import printed

from spkd.report.tables import comparison_markdown, comparison_table, signed
from spkd.studies.records import Comparison, ComparisonRow

NONE = ComparisonRow("none", (0, 1), (3.0, 4.0), (2.0, 2.5), 3.5, 3.5, 0.5)
SP = ComparisonRow("sp", (0, 1), (2.0, 2.5), (1.0, 1.0), 2.25, 2.25, 0.25, -1.25, (-4.426, 1.926), 0.12567)
ONCE = ComparisonRow("kd", (0,), (3.0,), (1.0,), 3.0, 3.0, None, -0.001)
COMPARISON = Comparison(
    title="Digits",
    teacher={"spec": "wrn-28-2", "test_error": 1.9},
    student="wrn-10-1",
    data="digits",
    rows=(NONE, SP, ONCE),
    command="spkd compare --seeds 2",
)


def test_every_line_of_the_markdown() -> None:
    lines = comparison_markdown(COMPARISON).splitlines()
    assert lines[0] == "**Digits**"
    assert lines[2:7] == [
        "| method | seeds | val. | median | mean ± s.e.m. | difference to none | 95 % interval | p | p (Holm) |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| none | 2 | 2.25 | 3.50 | 3.50 ± 0.50 | – | – | – | – |",
        "| sp | 2 | 1.00 | 2.25 | 2.25 ± 0.25 | −1.25 | −4.43 to +1.93 | 0.13 | 0.25 |",
        "| kd | 1 | 1.00 | 3.00 | 3.00 | 0.00 | – | – | – |",
    ]
    assert "wrn-10-1 on digits; teacher wrn-28-2 (1.90 %)" in lines[8]
    assert lines[-3:] == ["```", "spkd compare --seeds 2", "```"]


def test_the_terminals_table_holds_the_same_numbers() -> None:
    text = printed(comparison_table(COMPARISON), width=120)
    for line in comparison_markdown(COMPARISON).splitlines()[4:7]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        row = next(row for row in text.splitlines() if row.split()[:1] == cells[:1])
        assert row.split() == " ".join(cells).split()


def test_several_p_values_stand_beside_what_they_are_when_corrected_for_their_number() -> None:
    """The smaller one of two times 2, the larger as it is (Holm 1979); a third without one counts nevertheless."""
    at = dataclasses.replace(SP, method="at", p_value=0.02)
    two = comparison_markdown(dataclasses.replace(COMPARISON, rows=(NONE, dataclasses.replace(SP, p_value=0.2), at)))
    assert "| p | p (Holm) |" in two
    assert "| 0.20 | 0.20 |" in two
    assert "| 0.020 | 0.040 |" in two
    assert "| – | – | – | – |" in two
    assert "p: two-sided t-tests against none, paired by seed; p (Holm): corrected for their number." in two
    one = comparison_markdown(dataclasses.replace(COMPARISON, rows=(NONE, SP)))
    assert "p: two-sided t-test against none, paired by seed." in one
    assert "(Holm)" not in one
    assert "| 0.13 | 0.25 |" in comparison_markdown(COMPARISON)


def test_what_the_differences_are_to_is_named() -> None:
    text = comparison_markdown(dataclasses.replace(COMPARISON, rows=(SP, ONCE), baseline="kd"))
    assert "| difference to kd |" in text
    assert "p: two-sided t-test against kd, paired by seed." in text


def test_the_pairs_are_told_where_not_all_seeds_have_one() -> None:
    text = comparison_markdown(dataclasses.replace(COMPARISON, rows=(NONE, dataclasses.replace(SP, pairs=1))))
    assert "| sp | 2 (1 pair) | 1.00 |" in text
    text = comparison_markdown(dataclasses.replace(COMPARISON, rows=(NONE, dataclasses.replace(SP, pairs=2))))
    assert "| sp | 2 | 1.00 |" in text


def test_equal_differences_are_printed_alike() -> None:
    differences = [2.15 - 2.705, 1.15 - 1.705, -0.555, -0.5549999999999999]
    assert len(set(differences)) > 1
    assert {signed(difference) for difference in differences} == {"−0.56"}
    assert {signed(-difference) for difference in differences} == {"+0.56"}


def test_a_method_with_brackets_or_bars_is_shown_as_it_is() -> None:
    odd = dataclasses.replace(COMPARISON, rows=(dataclasses.replace(SP, method="[red]a|b[/red]"),))
    assert "[red]a|b[/red]" in printed(comparison_table(odd), width=120)
    assert "| [red]a\\|b[/red] |" in comparison_markdown(odd)


@pytest.mark.parametrize("teacher", [{}, {"spec": "wrn-28-2"}, {"spec": "wrn-28-2", "test_error": None}])
def test_a_teacher_of_unknown_error_gets_none(teacher: dict[str, str | None]) -> None:
    text = comparison_markdown(dataclasses.replace(COMPARISON, teacher=teacher, rows=(NONE, SP), command=""))
    assert "(" not in text
    assert "```" not in text
    assert ("teacher wrn-28-2." in text) == bool(teacher)


def test_nothing_is_cut_on_a_narrow_terminal() -> None:
    text = "".join(printed(comparison_table(COMPARISON), width=60).split())
    assert "−4.43" in text
    assert "…" not in text


BALANCED = (
    ComparisonRow("none", (0, 1), (9.0, 9.5), (8.0, 8.5), 9.25, 9.25, 0.25),
    ComparisonRow("sp", (0, 1), (8.0, 7.0), (6.0, 6.5), 7.5, 7.5, 0.5, -1.75, (-11.28, 7.78), 0.2323),
    ComparisonRow("kd", (0,), (9.0,), (7.0,), 9.0, 9.0, None, 0.0),
)


def test_the_other_measure_has_a_column_where_it_is_known() -> None:
    teacher = {"spec": "wrn-28-2", "test_error": 3.6, "test_balanced_error": 9.1}
    plain = dataclasses.replace(COMPARISON, teacher=teacher, other_rows=BALANCED)
    lines = comparison_markdown(plain).splitlines()
    assert lines[0] == "**Digits**"
    assert lines[2].startswith(
        "| method | seeds | val. | median | mean ± s.e.m. | balanced ± s.e.m. | difference to none |"
    )
    assert lines[5] == "| sp | 2 | 1.00 | 2.25 | 2.25 ± 0.25 | 7.50 ± 0.50 | −1.25 | −4.43 to +1.93 | 0.13 | 0.25 |"
    assert (
        "Test error in % of wrn-10-1 on digits; teacher wrn-28-2 (3.60 %); balanced: mean balanced test error"
        in lines[8]
    )
    assert "val.: mean validation error, to choose by" in lines[8]
    said = "(3.60 %, balanced 9.10 %) is no better than the student alone (3.50 %, balanced 9.25 %) by the error, and"
    assert f"Warning: the teacher {said} better by the other." in "\n".join(lines)


def test_a_comparison_by_the_balanced_error_says_so_everywhere() -> None:
    teacher = {"spec": "wrn-28-2", "test_error": 1.9, "test_balanced_error": 9.3}
    comparison = dataclasses.replace(
        COMPARISON, teacher=teacher, rows=BALANCED, other_rows=COMPARISON.rows, measure="balanced"
    )
    lines = comparison_markdown(comparison).splitlines()
    assert lines[0] == "**Digits, by the balanced error**"
    assert "| mean ± s.e.m. | error ± s.e.m. | difference to none |" in lines[2]
    assert lines[5] == "| sp | 2 | 6.25 | 7.50 | 7.50 ± 0.50 | 2.25 ± 0.25 | −1.75 | −11.28 to +7.78 | 0.23 | 0.46 |"
    assert (
        "Balanced test error in % of wrn-10-1 on digits; teacher wrn-28-2 (9.30 %); error: mean test error" in lines[8]
    )
    assert "val.: mean balanced validation error, to choose by" in lines[8]
    assert "by the balanced error, and better by the other." in "\n".join(lines)


@pytest.mark.parametrize(("error", "warned"), [(3.49, False), (3.5, True), (4, True)])
def test_a_teacher_no_better_than_the_student_alone_is_warned_of(error: float, warned: bool) -> None:
    weak = dataclasses.replace(COMPARISON, teacher={"spec": "wrn-28-2", "test_error": error})
    said = f"Warning: the teacher ({error:.2f} %) is no better than the student alone (3.50 %)"
    assert (said in comparison_markdown(weak)) == warned
    assert ("Warning" in printed(comparison_table(weak), width=120)) == warned


def test_unlike_numbers_of_steps_are_warned_of() -> None:
    longer = dataclasses.replace(COMPARISON, epochs=30, steps={"none": 7_890, "sp": 281_250, "kd": 281_250})
    said = (
        "the student alone had 7,890 steps, with the teacher 281,250; --methods none --epochs 1069 with another --out"
    )
    assert f"Warning: {said} gives it as many." in comparison_markdown(longer)
    for steps in ({}, {"sp": 9, "kd": 9}, {"none": 9}, {"none": 9, "sp": 9, "kd": 9}):
        assert "steps" not in comparison_markdown(dataclasses.replace(longer, steps=steps))
