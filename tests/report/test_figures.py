"""The figure is read back from its own objects and files: what is drawn is what the record says."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from spkd.report.drawing import write_figure
from spkd.report.figures import comparison_figure
from spkd.studies.records import Comparison, comparison_row

SEEDS = [0, 1, 2, 3, 4]
NONE = comparison_row("none", SEEDS, [3.4, 3.9, 3.1, 4.0, 3.1], [2.0] * 5)
SP = comparison_row("sp", SEEDS, [2.2, 2.0, 2.4, 2.2, 2.2], [1.0] * 5, NONE)
FEW = comparison_row("sp+kd", [3], [2.1], [1.0], NONE)
COMPARISON = Comparison("Digits", {"test_error": 1.9}, "wrn-10-1", "digits", (NONE, SP, FEW))


def dots(figure: Figure, column: int) -> np.ndarray:
    found = [child for child in figure.axes[0].collections if child.get_gid()]
    return np.asarray(found[column].get_offsets())


def test_each_seed_is_a_dot_at_its_error_and_none_covers_another() -> None:
    figure = comparison_figure(COMPARISON)
    for column, row in enumerate(COMPARISON.rows):
        points = dots(figure, column)
        assert points[:, 1].tolist() == list(row.test_errors)
        assert len(set(points[:, 0])) == len(row.seeds)
        assert np.all(np.abs(points[:, 0] - column) < 0.45)


def test_a_seed_stands_at_the_same_place_in_every_column() -> None:
    figure = comparison_figure(COMPARISON)
    assert dots(figure, 1)[:, 0] - 1 == pytest.approx(dots(figure, 0)[:, 0])
    assert dots(figure, 2)[0, 0] - 2 == pytest.approx(dots(figure, 0)[3, 0])


def test_mean_and_standard_error_are_drawn_beside_the_dots() -> None:
    figure = comparison_figure(COMPARISON)
    bars = figure.axes[0].containers
    for column, row in enumerate(COMPARISON.rows):
        marker, _, lines = bars[column].lines
        assert marker.get_ydata()[0] == row.mean
        assert marker.get_xdata()[0] > dots(figure, column)[:, 0].max()
        if row.sem is None:
            assert lines == ()
        else:
            (low, high) = lines[0].get_segments()[0][:, 1]
            assert (low, high) == pytest.approx((row.mean - row.sem, row.mean + row.sem))


def test_labels_name_method_n_and_p() -> None:
    axes = comparison_figure(COMPARISON).axes[0]
    assert axes.get_ylabel() == "test error (%)"
    labels = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    assert labels[0] == ["none", "n = 5"]
    assert labels[1] == ["sp", "n = 5", f"p = {SP.p_value:.3f}"]
    assert labels[2] == ["sp+kd", "n = 1"]


def test_a_label_tells_of_how_many_pairs_p_is() -> None:
    fewer = comparison_row("at", [1, 2, 7], [3.0, 2.9, 3.3], [1.0] * 3, NONE)
    axes = comparison_figure(dataclasses.replace(COMPARISON, rows=(NONE, fewer))).axes[0]
    label = axes.get_xticklabels()[1].get_text().split("\n")
    assert label == ["at", "n = 3 (2 pairs)", f"p = {fewer.p_value:.2f}"]


def test_a_comparison_by_the_balanced_error_is_drawn_with_the_teacher_s() -> None:
    teacher = {"test_error": 1.9, "test_balanced_error": 2.7}
    axes = comparison_figure(dataclasses.replace(COMPARISON, teacher=teacher, measure="balanced")).axes[0]
    assert axes.get_ylabel() == "balanced test error (%)"
    assert "teacher\n2.70 %" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("teacher", "drawn"), [({"test_error": 1.9}, True), ({}, False)])
def test_the_teachers_error_is_drawn_where_it_is_known(teacher: dict[str, float], drawn: bool) -> None:
    axes = comparison_figure(dataclasses.replace(COMPARISON, teacher=teacher)).axes[0]
    assert ["1.90 %" in text.get_text() for text in axes.texts] == [True] * drawn


def test_long_labels_do_not_run_into_each_other() -> None:
    long = dataclasses.replace(SP, method="my_losses/contrast.py:ContrastiveLoss?weight=3&tau=0.1")
    rows = (NONE, long, dataclasses.replace(long, method="sp?weight=1000+kd+at"), FEW)
    figure = comparison_figure(dataclasses.replace(COMPARISON, rows=rows))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) > key(figure).get_window_extent().y1


def key(figure: Figure) -> Text:
    found: list[Text] = figure.findobj(lambda artist: getattr(artist, "get_text", str)().startswith("dots:"))
    return found[0]


def test_the_key_explains_p_where_there_is_one() -> None:
    untested = tuple(dataclasses.replace(row, p_value=None) for row in COMPARISON.rows)
    assert "p: paired t-test" in key(comparison_figure(COMPARISON)).get_text()
    assert "p:" not in key(comparison_figure(dataclasses.replace(COMPARISON, rows=untested))).get_text()


def test_the_key_says_that_several_p_values_are_not_corrected() -> None:
    said = "p: paired t-tests against none, not corrected for their number"
    two = dataclasses.replace(COMPARISON, rows=(NONE, SP, dataclasses.replace(SP, method="at")))
    figure = comparison_figure(two)
    FigureCanvasAgg(figure).draw()
    assert said in key(figure).get_text()
    box = key(figure).get_window_extent()
    assert figure.bbox.x0 < box.x0
    assert box.x1 < figure.bbox.x1
    assert "corrected" not in key(comparison_figure(COMPARISON)).get_text()
    assert said in comparison_figure(COMPARISON, COMPARISON).get_supxlabel()


def test_the_key_names_what_the_tests_are_against() -> None:
    for rows in ((NONE, SP), (NONE, SP, dataclasses.replace(SP, method="at"))):
        against = dataclasses.replace(COMPARISON, rows=rows, baseline="kd")
        assert " against kd" in key(comparison_figure(against)).get_text()


def test_the_key_explains_error_bars_where_there_are_some() -> None:
    without = tuple(dataclasses.replace(row, sem=None) for row in COMPARISON.rows)
    for rows, explained in ((COMPARISON.rows, True), (without, False)):
        key = comparison_figure(dataclasses.replace(COMPARISON, rows=rows)).get_supxlabel()
        assert "diamond: mean" in key
        assert ("± s.e.m." in key) is explained


def test_two_files_are_written_and_are_the_same_every_time(tmp_path: Path) -> None:
    first = write_figure(comparison_figure(COMPARISON), tmp_path / "a" / "comparison.v1.png")
    second = write_figure(comparison_figure(COMPARISON), tmp_path / "b" / "comparison.v1")
    assert [path.name for path in first] == ["comparison.v1.png", "comparison.v1.svg"]
    assert sorted(first[0].parent.iterdir()) == sorted(first)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(first[0]) as image:
        assert image.size[0] >= 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    root = ElementTree.parse(first[1]).getroot()
    groups = [element.get("id") for element in root.iter() if (element.get("id") or "").startswith("seeds of")]
    assert groups == ["seeds of none", "seeds of sp", "seeds of sp+kd"]
    assert "<dc:date>" not in first[1].read_text(encoding="utf-8")


def test_a_dollar_sign_is_no_formula(tmp_path: Path) -> None:
    odd = dataclasses.replace(SP, method="a$b^$")
    figure = comparison_figure(dataclasses.replace(COMPARISON, title="$x$ $", rows=(NONE, odd)))
    _, svg = write_figure(figure, tmp_path / "x.png")
    assert "seeds of a$b^$" in svg.read_text(encoding="utf-8")


def test_pyplot_is_never_imported() -> None:
    code = "import sys, spkd.report.figures; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
