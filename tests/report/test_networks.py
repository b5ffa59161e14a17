"""What is shown of networks is what they are called, whatever stands in the name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import printed

from spkd.calibration import Calibration
from spkd.quantisation import ClassLoss, Int8Report
from spkd.report.networks import (
    calibration_text,
    evaluation_table,
    gain_text,
    int8_table,
    int8_text,
    network_table,
)
from spkd.studies.records import NetworkRow
from spkd.training.evaluation import ClassError, Evaluation


def test_brackets_in_names_of_networks_are_kept() -> None:
    row = NetworkRow("[bold]sp[/bold]", "net.py:Net?sizes=[a, b]", 2_500_000, 950, 1.234, None, 3.0)
    line = next(line for line in printed(network_table([row])).splitlines() if "2.50 M" in line)
    cells = re.split(" {2,}", line.strip())
    assert cells == ["[bold]sp[/bold]", "net.py:Net?sizes=[a, b]", "2.50 M", "950", "1.23 ms", "3.00 %", "–"]


def test_brackets_in_names_of_classes_are_kept() -> None:
    classes = (ClassError("[red]", 2, 50.0, "[/]", 25.0, 12.5, 0.98764), ClassError("[/]", 1, 0.0))
    measured = Evaluation(3, 33.3, 25.0, None, 0.5, 1.0, None, classes)
    text = printed(evaluation_table(measured, per_class=True))
    assert "[red]" in text
    assert "[/]" in text
    assert "│ [red] │ 2 │ 50.00 % │ 12.50 % │ 0.9876 │ [/] (25.00 %) │" in " ".join(text.split())
    assert "[red]" not in printed(evaluation_table(measured))


def test_the_terminal_is_given_no_sign_of_a_name_that_it_would_obey() -> None:
    odd, shown = "\x1b[2J", "\\x1b[2J"
    measured = Evaluation(3, 33.3, 25.0, None, 0.5, 1.0, None, (ClassError(odd, 2, 50.0, odd, 25.0),))
    for text in (
        printed(network_table([NetworkRow(odd, odd, 1, 1, 1.0, None, 3.0)])),
        printed(evaluation_table(measured, per_class=True)),
    ):
        assert odd not in text
        assert text.count(shown) == 2


def test_the_balanced_error_is_shown_where_classes_are_unequal() -> None:
    for second, shown in ((10, True), (28, True), (29, False), (43, False), (64, False), (65, True), (0, False)):
        classes = (ClassError("a", 43, 50.0), ClassError("b", second, 0.0 if second else None))
        measured = Evaluation(43 + second, 33.3, 12.34, None, 0.5, 1.0, None, classes)
        text = printed(evaluation_table(measured))
        assert ("balanced error" in text) == shown
        assert ("12.34 %" in text) == shown


def in_8_bits(error: float, balanced: float, few: int = 400) -> Int8Report:
    """Return the report of a network that errs on 3 and 5 %, in a class of 500 images and one of few."""
    classes = (ClassLoss("a", 500, 3.5, 3.0), ClassLoss("[b]", few, 9.25, 7.0))
    return Int8Report(Path("m.onnx"), 100, 400, 380, 1.0, 2.0, 3.0, 1234, error, 3.0, 98.765, balanced, 5.0, classes)


@pytest.mark.parametrize(
    ("error", "balanced", "said"),
    [
        (4.5, 6.0, "validation error +1.50 points, balanced error +1.00, "),
        (4.0, 4.5, "validation error +1.00 points, balanced error −0.50, "),
        (2.9, 6.0, "validation error −0.10 points, balanced error +1.00, "),
        (3.9, 5.9, None),
        (1.0, 1.0, None),
    ],
)
def test_what_8_bits_cost_is_warned_of_from_a_point_on(error: float, balanced: float, said: str | None) -> None:
    report = in_8_bits(error, balanced)
    text = int8_text(report)
    assert text.startswith("in 8-bit integers 98.77 % of the 1,234 validation images keep their class")
    warned = f"\nwarning: {said}worst class '[b]' +2.25 (400 images); without --int8 the file is exact"
    assert text.endswith(warned if said else "keep their class")
    table = " ".join(printed(int8_table(report)).split())
    assert f"│ onnx, int8 │ 100 bytes │ 1.00 ms │ {error:.2f} % │" in table
    assert "│ onnx │ 400 bytes │ 2.00 ms │ 3.00 % │" in table
    assert "balanced" not in table


def test_the_balanced_error_of_8_bits_is_in_the_table_where_classes_are_unequal() -> None:
    table = " ".join(printed(int8_table(in_8_bits(4.0, 6.5, few=333))).split())
    assert "│ onnx, int8 │ 100 bytes │ 1.00 ms │ 4.00 % │ 6.50 % │" in table
    assert "│ onnx │ 400 bytes │ 2.00 ms │ 3.00 % │ 5.00 % │" in table
    assert "│ balanced error │" in table.replace("┃", "│")


@pytest.mark.parametrize(
    ("temperature", "error", "warning"),
    [
        (1.25, 0.1, None),
        (1.25, 0.13, "25 wrong answers among 1,250 images are too few to tell it from 1: the probabilities may be as"),
        (0.8, 0.11, "25 wrong answers among 1,250 images are too few to tell it from 1: the probabilities may be as"),
        (0.8, 0.09, None),
        (2.0, 0.39, None),
        (2.0, 0.41, "25 wrong answers among 1,250 images determine it only roughly: more validation images would help"),
    ],
)
def test_a_temperature_that_the_images_tell_badly_is_warned_of(
    temperature: float, error: float, warning: str | None
) -> None:
    before = Evaluation(1250, 2.0, 2.0, None, 0.51234, 4.321, None, ())
    after = replace(before, cross_entropy=0.41234, calibration_error=1.234)
    text, *warned = calibration_text(Calibration(temperature, error, before, after)).splitlines()
    said = "calibration error 1.23 % (was 4.32 %), cross-entropy 0.4123 (was 0.5123), on the 1,250 validation images"
    assert text == f"temperature {temperature:.3g} ± {error:.2g}: {said} that it was chosen on"
    assert [line.startswith(f"warning: {warning}") for line in warned] == [True] * (warning is not None)


def test_a_teacher_no_better_than_the_student_alone_is_warned_of() -> None:
    def rows(teacher: float | None) -> list[NetworkRow]:
        named = {"teacher": teacher, "student alone": 3.0, "student, sp": 3.5}
        return [NetworkRow(label, "wrn-10-1", 1, 1, 1.0, error, None) for label, error in named.items()]

    assert "0.50 points MORE" in str(gain_text(rows(2.9)))
    for teacher in (2.9, None):
        assert "warning" not in str(gain_text(rows(teacher)))
    assert (
        str(gain_text(rows(3.0)))
        .splitlines()[1]
        .startswith("warning: the teacher (3.00 %) is no better than the student alone (3.00 %)")
    )


def with_both(**errors: tuple[float, float | None]) -> list[NetworkRow]:
    named = {name.replace("_", " "): both for name, both in errors.items()}
    return [
        NetworkRow(label, "wrn-10-1", 1, 1, 1.0, error, None, test_balanced_error=balanced)
        for label, (error, balanced) in named.items()
    ]


def test_where_plain_and_balanced_error_disagree_there_is_no_verdict() -> None:
    text = str(gain_text(with_both(teacher=(6.0, 9.0), student_alone=(5.0, 10.0), student_sp=(5.5, 8.0))))
    assert text.splitlines() == [
        "student sp: a test error 0.50 points higher than alone, but a balanced error 2.00 points lower: the two "
        "disagree, in this one run; `spkd compare` tests it over seeds",
        "warning: the teacher (6.00 %, balanced 9.00 %) is no better than the student alone (5.00 %, balanced 10.00 %) "
        "by the error, and better by the other",
    ]
    assert "by the balanced error, and" in str(
        gain_text(with_both(teacher=(4.0, 11.0), student_alone=(5.0, 10.0), sp=(5.5, 8.0)))
    )


def test_where_plain_and_balanced_error_agree_both_are_told() -> None:
    text = str(gain_text(with_both(teacher=(6.0, 10.0), student_alone=(5.0, 10.0), sp=(5.5, 12.0))))
    assert text.startswith(
        "sp: 0.50 points MORE test errors than alone, and a balanced error 2.00 points higher, in this"
    )
    assert (
        "(6.00 %, balanced 10.00 %) is no better than the student alone (5.00 %, balanced 10.00 %): it may do" in text
    )
    better = str(gain_text(with_both(teacher=(1.0, 1.0), student_alone=(5.0, 10.0), sp=(4.5, 9.0))))
    assert better.startswith("sp: 0.50 points fewer test errors than alone, and a balanced error 1.00 points lower, in")
    assert "warning" not in better


def test_a_lower_weight_is_advised_where_neither_error_gains() -> None:
    for plain, balanced, advised in ((5.5, 8.0, False), (5.5, 10.5, True), (5.0, 10.5, True), (5.0, 9.0, False)):
        rows = with_both(student_alone=(5.0, 10.0), student=(plain, balanced))
        rows[-1] = replace(rows[-1], label="student, sp")
        assert str(gain_text(rows)).endswith("and a lower --gamma may help") == advised


def test_an_unknown_balanced_error_is_no_part_of_a_verdict() -> None:
    text = str(gain_text(with_both(teacher=(5.0, None), student_alone=(5.0, 10.0), sp=(4.5, 9.0))))
    assert "the teacher (5.00 %) is no better than the student alone (5.00 %): it may do harm" in text
    text = str(gain_text(with_both(student_alone=(5.0, None), sp=(4.5, 9.0))))
    assert text.startswith("sp: 0.50 points fewer test errors than alone, in this one run")


def test_the_balanced_test_error_has_a_column_where_there_is_one() -> None:
    rows = with_both(teacher=(5.0, None), student_alone=(4.0, 9.87))
    text = printed(network_table(rows))
    assert ["9.87 %" in text, "balanced" in text] == [True, True]
    assert "balanced" not in printed(network_table([replace(row, test_balanced_error=None) for row in rows]))
    narrow = printed(network_table(rows), width=80)
    assert "9.87 %" in narrow
    assert "…" not in narrow


def test_no_number_is_cut_on_a_terminal_of_80_columns() -> None:
    rows = [NetworkRow("student, sp+kd", "my_net.py:make_net", 77_600, 763_500, 10.39, 12.2, 21.68)]
    text = printed(network_table(rows), width=80)
    for shown in ("77.6 k", "763.5 k", "10.39 ms", "12.20 %", "21.68 %", "parameters", "validation", "latency", "test"):
        assert shown in text
    assert "…" not in text


def test_what_the_teacher_brought_is_told_in_words() -> None:
    def text(error: float, label: str = "student, sp+kd") -> str:
        rows = [
            NetworkRow(name, "wrn-10-1", 1, 1, 1.0, own, None) for name, own in (("student alone", 3.0), (label, error))
        ]
        return str(gain_text(rows))

    assert "as many test errors as alone" in text(3.0)
    assert "0.50 points fewer" in text(2.5)
    assert text(3.5).endswith("and a lower --gamma may help")
    assert "--gamma" not in text(3.5, "student, kd") + text(2.5)


def test_unlike_numbers_of_steps_are_told_below_the_verdict() -> None:
    """As many epochs are more steps where there are images without a label too."""

    def lines(alone: int | None, taught: int | None) -> list[str]:
        rows = [
            NetworkRow(name, "wrn-10-1", 1, 1, 1.0, error, None, 30, steps=steps)
            for name, error, steps in (("student alone", 3.0, alone), ("student, sp", 2.5, taught))
        ]
        return str(gain_text(rows)).splitlines()[1:]

    said = (
        "warning: the student alone had 7,890 steps, with the teacher 281,250; `spkd train --epochs 1069 ...` gives it"
    )
    assert lines(7_890, 281_250) == [f"{said} as many"]
    assert lines(281_250, 7_890)[0].endswith("--epochs 1 ...` gives it as many")
    for alike in ((7_890, 7_890), (7_890, 8_000), (None, 281_250), (7_890, None)):
        assert lines(*alike) == []


def test_runs_of_unequal_length_are_no_verdict() -> None:
    rows = [
        NetworkRow(name, "wrn-10-1", 1, 1, 1.0, error, None, epochs)
        for name, error, epochs in (("student alone", 3.0, 30), ("student, sp", 3.5, 12))
    ]
    text = "student, sp: 0.50 points MORE test errors than alone, but after 12 epochs, and alone after 30"
    assert gain_text(rows) == text
