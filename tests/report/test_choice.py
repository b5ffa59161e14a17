"""What is shown of a choice among students is what its record holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import printed
from PIL import Image

from spkd.report.choice import choice_figure, choice_markdown, choice_table
from spkd.report.drawing import write_figure
from spkd.studies.records import Candidate, Choice, NetworkRow, comparison_row

NONE = comparison_row("none", [0, 1], [5.0, 6.0], [4.0, 4.0])
SP = comparison_row("sp", [0, 1], [3.0, 4.0], [2.0, 3.0], NONE)
SMALL = Candidate("wrn-10-1", 77_562, 763_456, 0.391, "sp", 2.5, SP, NONE, True)
PLAIN = Candidate("timm/a$b", 1_000_000, 2_000_000, 1.0, "none", 4.0, NONE, NONE, False)
TEACHER = NetworkRow("teacher", "wrn-28-2", 1_467_610, 13_376_000, 1.93, test_error=2.1, val_error=1.01)
CHOICE = Choice("digits", (SMALL, PLAIN), TEACHER, command="spkd compare --students wrn-10-1")


def test_every_line_of_the_markdown() -> None:
    lines = choice_markdown(CHOICE).splitlines()
    assert lines[0] == "**Students on digits**"
    assert lines[2:7] == [
        "| student | method | parameters | MACs | CPU latency | val. | test error | alone | efficient |",
        "|:---|:---|---:|---:|---:|---:|---:|---:|---:|",
        "| wrn-10-1 | sp | 77.6 k | 763.5 k | 0.39 ms | 2.50 | 3.50 ± 0.50 | 5.50 ± 0.50 | yes |",
        "| timm/a$b | none | 1.00 M | 2.00 M | 1.00 ms | 4.00 | 5.50 ± 0.50 | 5.50 ± 0.50 | no |",
        "| teacher: wrn-28-2 | – | 1.47 M | 13.38 M | 1.93 ms | 1.01 | 2.10 | – | – |",
    ]
    assert lines[8].startswith("Test error in %, mean of 2 seeds, by the method with the lowest mean validation error")
    assert lines[-3:] == ["```", "spkd compare --students wrn-10-1", "```"]


def test_what_is_not_known_is_a_dash_and_balanced_errors_are_called_so() -> None:
    alone = dataclasses.replace(SMALL, alone=None)
    lines = choice_markdown(Choice("digits", (alone,))).splitlines()
    assert lines[4].endswith("| 3.50 ± 0.50 | – | yes |")
    assert len(lines) == 7
    teacher = dataclasses.replace(TEACHER, test_balanced_error=7.0)
    balanced = choice_markdown(dataclasses.replace(CHOICE, teacher=teacher, measure="balanced")).splitlines()
    assert balanced[6].endswith("| – | 7.00 | – | – |")
    assert balanced[8].startswith("Balanced test error in %")


def test_the_terminals_table_holds_the_same_numbers() -> None:
    text = printed(choice_table(CHOICE), width=120)
    for line in choice_markdown(CHOICE).splitlines()[4:7]:
        cells = " ".join(cell.strip() for cell in line.strip("|").split("|"))
        assert any(row.split() == cells.split() for row in text.splitlines()), cells


def test_the_figure_has_each_student_at_its_latency_and_errors(tmp_path: Path) -> None:
    figure = choice_figure(CHOICE)
    [axes] = figure.axes
    points = {tuple(bars.lines[0].get_xydata()[0]) for bars in axes.containers}
    assert points == {(0.391, 3.5), (0.391, 5.5), (1.0, 5.5), (1.93, 2.1)}
    legend = axes.get_legend()
    assert legend is not None
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["wrn-10-1: sp", r"timm/a\$b alone", "teacher wrn-28-2"]
    png, svg = write_figure(figure, tmp_path / "students.png")
    with Image.open(png) as picture:
        assert min(picture.size) > 200
    assert "wrn-10-1" in svg.read_text()


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_students_is_drawn(count: int, tmp_path: Path) -> None:
    many = tuple(dataclasses.replace(SMALL, student=f"s{place}", latency_ms=1.0 + place) for place in range(count))
    figure = choice_figure(Choice("digits", many))
    drawn = [bars.lines[0] for bars in figure.axes[0].containers]
    full = [line for line in drawn if line.get_markerfacecolor() != "white"]
    assert len(full) == count
    assert len({(line.get_color(), line.get_marker()) for line in full}) == count
    write_figure(figure, tmp_path / "students.png")
