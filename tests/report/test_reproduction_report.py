"""Tables and figures of a reproduction show what the records hold, and how sure the paper's figures are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from spkd.report import reproduction_figures as figures
from spkd.report.reproduction import write_report
from spkd.report.reproduction_tables import additions, distances, heading, networks, overview, statistics
from spkd.studies.findings import Line, Pair
from spkd.studies.records import ComparisonRow, comparison_row
from spkd.studies.reproduction import PlannedTask, Record, Reproduction

SEEDS = [0, 1, 2]
ALONE = comparison_row("none", SEEDS, [9.0, 8.6, 8.8], [2.0] * 3)
SP = comparison_row("sp", SEEDS, [8.0, 7.5, 7.9], [1.0] * 3, ALONE)


def pair(*lines: tuple[str, ComparisonRow | None]) -> Pair:
    made = tuple(Line(label, 3, row, None if row is None else row.p_value) for label, row in lines)
    return Pair("wrn-16-1", "wrn-16-2", 175066, 691674, made, 6.5)


def reproduction(experiment: str = "cifar10", tasks: tuple[PlannedTask, ...] = ()) -> Reproduction:
    return Reproduction(experiment, "small", "spkd reproduce", tasks, (), Path())


def test_the_papers_figures_stand_beside_ours_with_their_marks() -> None:
    grid = overview(reproduction(), [pair(("none", ALONE), ("sp", SP))])
    assert grid.headings == ("student", "teacher", "alone", "SP", "teacher alone")
    row = ("wrn-16-1 (0.18 M)", "wrn-16-2 (0.69 M)", "8.80 (8.74 ‡)", "7.90 (7.52 †)", "6.50 (6.07 †)")
    assert grid.rows == (row,)
    assert any("unverified" in note for note in grid.notes if note.startswith("†"))
    assert any("quoted by others" in note for note in grid.notes if note.startswith("‡"))


@pytest.mark.parametrize("experiment", ["combinations", "transfer", "architectures"])
def test_no_figure_of_the_paper_is_shown_where_none_is_known(experiment: str) -> None:
    for grid in (overview, statistics):
        shown = grid(reproduction(experiment), [pair(("none", ALONE), ("sp", SP))])
        text = str(shown)
        assert "†" not in text
        assert "‡" not in text
        assert "(8.74" not in text


def test_a_footnote_is_there_only_for_a_mark_that_is_shown() -> None:
    other = dataclasses.replace(pair(("none", ALONE)), student="wrn-40-2", teacher="wrn-16-8")
    text = "\n".join(overview(reproduction(), [other]).notes)
    assert "‡" in text
    assert "†" not in text


def test_unfinished_lines_are_seen() -> None:
    some = comparison_row("sp", [0], [8.0], [1.0], ALONE)
    shown = [pair(("none", ALONE), ("at", None), ("sp", some))]
    assert overview(reproduction(), shown).rows[0][3:5] == ("unfinished 0 of 3 (8.28 †)", "unfinished 1 of 3 (7.52 †)")
    lines = statistics(reproduction(), shown).rows
    assert lines[1][2:5] == ("AT", "0 of 3", "unfinished")
    assert lines[2][2:5] == ("SP", "1 of 3", "8.00")


def test_the_number_of_pairs_stands_beside_that_of_the_seeds_where_it_is_another() -> None:
    alone = comparison_row("none", [0, 1], [9.0, 8.6], [2.0] * 2)
    kd = comparison_row("kd", [1, 2], [8.5, 8.7], [1.0] * 2, alone)
    joined = comparison_row("kd+sp", SEEDS, [8.0, 7.5, 7.9], [1.0] * 3, alone)
    shown = [pair(("none", alone), ("kd", kd), ("kd+sp", joined))]
    rows = statistics(reproduction("combinations"), shown).rows
    assert [row[3] for row in rows] == ["2 of 3", "2 of 3 (1 pair)", "3 (2 pairs)"]
    grid = additions(reproduction("combinations"), shown)
    assert grid is not None
    assert grid.rows[0][2:6] == ("kd+sp", "kd", "2", f"−{(8.5 - 7.5 + 8.7 - 7.9) / 2:.2f}")


def test_statistics_are_those_of_the_comparison() -> None:
    line = statistics(reproduction("gamma"), [pair(("none", ALONE), ("sp", SP))]).rows[1]
    p_value = stats.ttest_rel(SP.test_errors, ALONE.test_errors).pvalue
    mean = np.mean(SP.test_errors)
    assert line[3:7] == ("3", "7.90", f"{mean:.2f} ± {stats.sem(SP.test_errors):.2f}", f"−{8.8 - mean:.2f}")
    assert line[8] == f"{p_value:.3f}"


def test_each_cell_of_the_statistics_stands_below_its_heading() -> None:
    own = dataclasses.replace(SP, interval=(-1.5, -0.5), p_value=0.0123)
    shown = dataclasses.replace(pair(("none", ALONE)), lines=(Line("sp", 3, own, 0.0369),))
    grid = statistics(reproduction("combinations"), [shown])
    cells = dict(zip(grid.headings, grid.rows[0], strict=True))
    assert (cells["95 % interval"], cells["p"], cells["p (Holm)"]) == ("−1.50 to −0.50", "0.012", "0.037")
    assert "paired by seed" in grid.notes[0]
    assert "share images" in statistics(reproduction("transfer"), [shown]).notes[0]


def test_what_sp_adds_is_told_against_the_method_without_it() -> None:
    joined = comparison_row("kd+sp", SEEDS, [7.5, 7.1, 7.2], [1.0] * 3, ALONE)
    without = comparison_row("kd", SEEDS, [8.0, 7.5, 7.9], [1.0] * 3, ALONE)
    grid = additions(reproduction("combinations"), [pair(("none", ALONE), ("kd", without), ("kd+sp", joined))])
    assert grid is not None
    differences = np.array([7.5 - 8.0, 7.1 - 7.5, 7.2 - 7.9])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval()
    p_value = stats.ttest_rel([7.5, 7.1, 7.2], [8.0, 7.5, 7.9]).pvalue
    expected = f"−{-differences.mean():.2f}", f"−{-low:.2f} to −{-high:.2f}", f"{p_value:.3f}"
    assert grid.rows == (("wrn-16-1", "wrn-16-2", "kd+sp", "kd", "3", *expected),)
    assert additions(reproduction("combinations"), [pair(("none", ALONE), ("sp", SP))]) is None


def test_distances_to_the_teacher_stand_beside_the_error_of_the_same_network(tmp_path: Path) -> None:
    results = {
        "measurements/a": {"sp_loss": {"alone": 0.25, "sp": 0.125}, "test_errors": {"alone": 9.0, "sp": None}},
        "measurements/b": {
            "points": [
                {"method": method, "seed": 1, "sp_loss": loss, "test_error": error}
                for method, loss, error in (("none", 0.3, 8.0), ("kd", 0.2, 8.5), ("sp", 0.1, 7.0), ("at", 0.4, 7.5))
            ]
        },
    }
    for name, result in results.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    tasks = tuple(PlannedTask(name, "measurement", {}, "done") for name in results)
    made = dataclasses.replace(reproduction("loss-vs-error", tasks), study=tmp_path)
    grid = distances(made)
    assert grid is not None
    assert grid.rows == (
        ("alone", "0.25", "9.00"),
        ("sp", "0.125", "–"),
        ("b, none, seed 1", "0.3", "8.00"),
        ("b, kd, seed 1", "0.2", "8.50"),
        ("b, sp, seed 1", "0.1", "7.00"),
        ("b, at, seed 1", "0.4", "7.50"),
    )
    found = figures.rank_correlations([("b", point) for point in results["measurements/b"]["points"]])
    assert found == {"b": pytest.approx(stats.spearmanr([0.3, 0.2, 0.1, 0.4], [8.0, 8.5, 7.0, 7.5]).statistic)}
    assert grid.notes == ("Mean over test batches of 128 images, not weighted by γ.",)
    assert distances(reproduction()) is None


def test_distances_tell_the_size_of_their_batches(tmp_path: Path) -> None:
    name = "measurements/a"
    (tmp_path / name).mkdir(parents=True)
    result = {"sp_loss": {"alone": 0.25}, "test_errors": {"alone": 9.0}, "batch": 36}
    (tmp_path / name / "result.json").write_text(json.dumps(result))
    tasks = (PlannedTask(name, "measurement", {}, "done"),)
    grid = distances(dataclasses.replace(reproduction("similarity", tasks), study=tmp_path))
    assert grid is not None
    assert grid.notes == ("Mean over test batches of 36 images, not weighted by γ.",)


def test_networks_that_have_not_been_trained_say_so() -> None:
    labels = {"row": None, "student": "wrn-16-1", "teacher": None, "method": "none", "setting": None, "seed": 0}
    tasks = (PlannedTask("none/wrn-16-1/seed-0", "training", labels, "failed", "no disk"),)
    assert networks(reproduction("similarity", tasks)).rows == (("wrn-16-1", "–", "none", "0", "–", "failed"),)


def test_headings() -> None:
    assert [heading(label) for label in ("none", "sp", "kd+at", "stages")] == ["alone", "SP", "KD+AT", "stages"]


def test_gamma_is_drawn_on_a_log_axis_with_every_seed() -> None:
    rows = [
        comparison_row(label, SEEDS, [8.0 + place, 7.5, 7.9], [1.0] * 3, ALONE)
        for place, label in enumerate(("10", "64000"))
    ]
    axes = figures.gamma_figure(pair(("none", ALONE), *((row.method, row) for row in rows))).axes[0]
    assert axes.get_xscale() == "log"
    dots = [np.asarray(found.get_offsets()) for found in axes.collections]
    drawn = {float(x): sorted(y for one in dots for at, y in one if at == x) for x in (10.0, 64000.0)}
    assert drawn == {10.0: sorted(rows[0].test_errors), 64000.0: sorted(rows[1].test_errors)}
    medians = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "D")
    assert list(medians.get_ydata()) == [row.median for row in rows]
    unfinished = figures.gamma_figure(pair(("none", None), *((row.method, row) for row in rows))).axes[0]
    assert [list(line.get_ydata()) for line in unfinished.lines if line.get_marker() == "D"] == [
        [row.median for row in rows]
    ]


@pytest.fixture
def activations(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    targets = np.repeat(np.arange(3), [2, 3, 4])
    channels = np.zeros((5, 9), dtype=np.float32)
    channels[0, targets == 2] = 4.0
    channels[3, targets == 0] = 3.0
    np.savez(tmp_path / "activations.npz", channels=channels, targets=targets)
    return {"classes": ["cat", "dog", "owl"], "layer": "group3"}, tmp_path


def test_activations_are_drawn_by_class_with_the_names_in_their_middle(
    activations: tuple[dict[str, Any], Path],
) -> None:
    axes = figures.activations_figure(*activations).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "owl"]
    assert list(axes.get_xticks()) == [0.5, 3.0, 6.5]
    drawn = np.asarray(axes.images[0].get_array())
    # The channel that fires for cats comes before the one that fires for owls.
    assert drawn[:, 0].argmax() < drawn[:, 8].argmax()


def test_similarities_are_drawn_in_rows_of_networks(tmp_path: Path) -> None:
    matrices = np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "similarity.npz", matrices=matrices, targets=np.tile([0, 0, 1, 1, 1, 1], (3, 1)))
    result = {
        "classes": ["cat", "dog"],
        "sp_loss": {"teacher": 0.0, "student": 0.0125},
        "test_errors": {"teacher": 5.0, "student": 7.5},
    }
    figure = figures.similarity_figure(result, tmp_path)
    panels = [axes for axes in figure.axes if axes.images]
    for axes, matrix in zip(panels, matrices.reshape(6, 6, 6), strict=False):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), matrix)
    titles = [axes.get_title() for axes in panels]
    assert titles[1] == "teacher\ntest error 5.00 %"
    assert titles[4] == "student\ntest error 7.50 %, SP loss 0.013"
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["cat", "dog"]


def points(losses: list[float], errors: list[float]) -> list[tuple[str, dict[str, Any]]]:
    found = zip(losses, errors, strict=True)
    return [("a-from-b", {"method": "sp", "seed": 0, "sp_loss": loss, "test_error": error}) for loss, error in found]


def test_the_rank_correlation_is_that_of_the_ranks() -> None:
    losses, errors = [0.01, 0.04, 0.02, 0.3], [5.0, 7.0, 8.0, 9.0]
    # Ranks 1 3 2 4 and 1 2 3 4: 1 - 6 (0 + 1 + 1 + 0) / (4 · 15) = 0.8.
    assert figures.rank_correlations(points(losses, errors)) == {"a-from-b": pytest.approx(0.8)}
    assert figures.rank_correlations(points([0.1] * 4, errors)) == {"a-from-b": None}
    assert figures.rank_correlations(points(losses, [5.0] * 4)) == {"a-from-b": None}
    axes = figures.losses_figure(points(losses, errors)).axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == "a from b, ρ = 0.80"
    assert axes.get_title().endswith("within a pair,\nstudents alone and by SP together")
    offsets = np.concatenate(
        [np.asarray(found.get_offsets()) for found in axes.collections if len(found.get_offsets())]
    )
    assert offsets.tolist() == [[loss, error] for loss, error in zip(losses, errors, strict=True)]


def test_two_or_three_networks_have_no_rank_correlation() -> None:
    for count in (2, 3):
        few = points([0.1, 0.2, 0.3][:count], [5.0, 6.0, 7.0][:count])
        assert figures.rank_correlations(few) == {"a-from-b": None}
        assert figures.losses_figure(few).axes[0].get_legend().get_texts()[0].get_text() == "a from b"


@pytest.mark.parametrize(
    ("count", "said"), [(4, "rank correlation (Spearman) 0.80"), (3, "too few that differ for a rank correlation")]
)
def test_the_report_says_which_networks_are_ranked_together(tmp_path: Path, count: int, said: str) -> None:
    name, losses, errors = "measurements/a-from-b", [0.01, 0.04, 0.02, 0.3], [5.0, 7.0, 8.0, 9.0]
    (tmp_path / name).mkdir(parents=True)
    found = [point for _, point in points(losses[:count], errors[:count])]
    (tmp_path / name / "result.json").write_text(json.dumps({"points": found}))
    folder = tmp_path / "loss-vs-error"
    folder.mkdir()
    (folder / "records.csv").write_text(",".join(field.name for field in dataclasses.fields(Record)) + "\n")
    task = {"name": name, "kind": "measurement", "labels": {}, "state": "done"}
    plan = {"experiment": "loss-vs-error", "scale": "small", "command": "spkd", "tasks": [task]}
    (folder / "reproduction.json").write_text(json.dumps(plan))
    assert write_report("loss-vs-error", tmp_path).findings == (
        f"a from b: SP loss and test error of {count} networks, students alone and by SP together: {said}",
    )


def test_students_alone_are_open_and_those_by_sp_filled() -> None:
    alone = ("a-from-b", {"method": "none", "seed": 0, "sp_loss": 0.3, "test_error": 9.0})
    axes = figures.losses_figure([*points([0.01, 0.04], [5.0, 7.0]), alone]).axes[0]
    filled = {
        tuple(place): len(found.get_facecolors()) > 0
        for found in axes.collections
        for place in found.get_offsets().tolist()
    }
    assert filled == {(0.01, 5.0): True, (0.04, 7.0): True, (0.3, 9.0): False}


def test_the_papers_median_stands_in_the_line_of_its_method() -> None:
    grid = statistics(reproduction(), [pair(("none", ALONE), ("sp", SP))])
    assert grid.headings[-1] == "paper's median"
    assert [row[-1] for row in grid.rows] == ["8.74 ‡", "7.52 †"]


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_a_table_says_what_it_was_made_with(scale: str) -> None:
    known = {
        **{"method": "none", "student": "wrn-16-1", "model": "wrn-16-1", "hardware": "two cores"},
        **{"train_images": 450, "val_images": 50, "test_images": 60, "image_size": 32, "epochs": 2},
    }
    record = Record(**{**dict.fromkeys((field.name for field in dataclasses.fields(Record)), ""), **known})
    made = dataclasses.replace(reproduction("gamma"), scale=scale, records=(record,))
    notes = statistics(made, [pair(("none", ALONE))]).notes
    assert ("The images are made up, so the figures say nothing." in notes) == (scale == "smoke")
    said = "450 training images at 32 pixels, 2 epochs, model selection on 50 validation images, 60 test images; two"
    assert any(said in note for note in notes)
