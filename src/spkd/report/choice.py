"""Students to choose from, as a table and as a figure."""

from __future__ import annotations

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from rich.table import Table

from spkd.report.drawing import COLOURS
from spkd.report.grid import Grid, grid_markdown, grid_table
from spkd.report.networks import short_count
from spkd.report.tables import MEASURES, NOT_KNOWN, mean_text
from spkd.studies.records import BASELINE, Candidate, Choice, ComparisonRow

_MARKERS = "DosPX^v"
"""Of students, with a colour each; there are as many again before both come together for the second time."""


def choice_table(choice: Choice) -> Table:
    """Return a rich table: one line for each student, the quickest first, below the teacher."""
    return grid_table(_grid(choice))


def choice_markdown(choice: Choice) -> str:
    """Return the same table in Markdown, with the command that repeats it below."""
    return grid_markdown(_grid(choice), choice.command)


def _grid(choice: Choice) -> Grid:
    headings = ("student", "method", "parameters", "MACs", "CPU latency", "val.", "test error", "alone", "efficient")
    rows = [_cells(one) for one in choice.candidates]
    if choice.teacher is not None:
        teacher = choice.teacher
        costs = _costs(teacher.parameters, teacher.multiply_adds, teacher.latency_ms)
        val = teacher.val_error if choice.measure == "error" else None
        errors = (NOT_KNOWN if error is None else f"{error:.2f}" for error in (val, choice.teacher_error))
        rows.append((f"teacher: {teacher.model}", NOT_KNOWN, *costs, *errors, NOT_KNOWN, NOT_KNOWN))
    return Grid(f"Students on {choice.data}", headings, tuple(rows), (_caption(choice),), texts=2)


def _cells(one: Candidate) -> tuple[str, ...]:
    costs = _costs(one.parameters, one.multiply_adds, one.latency_ms)
    alone = NOT_KNOWN if one.alone is None else mean_text(one.alone)
    efficient = "yes" if one.is_efficient else "no"
    return (one.student, one.method, *costs, f"{one.val_error:.2f}", mean_text(one.row), alone, efficient)


def _costs(parameters: int, multiply_adds: int, latency_ms: float) -> tuple[str, str, str]:
    return short_count(parameters), short_count(multiply_adds), f"{latency_ms:.2f} ms"


def _caption(choice: Choice) -> str:
    name, seeds = MEASURES[choice.measure], len(choice.candidates[0].row.seeds)
    many = f"{seeds} seed{'' if seeds == 1 else 's'}"
    return (
        f"{name[0].upper()}{name[1:]} in %, mean of {many}, by the method with the lowest mean validation error "
        "(val.); alone: without a teacher. Efficient: no other student is at least as fast and at least as good on the "
        "validation images, and better in one of the two. CPU latency: of one image, on this machine. comparison.md in "
        "each student's folder says whether a method helped."
    )


def choice_figure(choice: Choice) -> Figure:
    """Draw the test error of each student, alone and by its method, against its latency on the CPU."""
    with style.context("default"):
        figure = Figure(figsize=(8.4, 4.8), dpi=200, layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(choice.candidates):
            _draw(axes, one, COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)])
        teacher = choice.teacher
        if teacher is not None and choice.teacher_error is not None:
            # As an error bar, like the students: a legend lists lines before these.
            where = ([teacher.latency_ms], [choice.teacher_error])
            axes.errorbar(
                *where, fmt="*", color="black", markersize=13, label=f"teacher {teacher.model}".replace("$", r"\$")
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.set_xlabel("CPU latency of one image (ms)", fontsize=11)
        axes.set_ylabel(f"{MEASURES[choice.measure]} (%)", fontsize=11)
        axes.set_title(f"Students on {choice.data}".replace("$", r"\$"), fontsize=11)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
        figure.supxlabel(
            "full: by the method with the lowest validation error    hollow: alone    bars: s.e.m.",
            fontsize=8.5,
            color="#444444",
        )
    return figure


def _draw(axes: Axes, one: Candidate, colour: str, marker: str) -> None:
    def draw(row: ComparisonRow, label: str | None, face: str) -> None:
        axes.errorbar(
            [one.latency_ms],
            [row.mean],
            yerr=None if row.sem is None else [row.sem],
            fmt=marker,
            color=colour,
            markerfacecolor=face,
            markersize=7,
            capsize=3,
            elinewidth=1.2,
            label=label,
            zorder=3,
        )

    name = f"{one.student}: {one.method}" if one.method != BASELINE else f"{one.student} alone"
    if one.alone is not None and one.method != BASELINE:
        axes.plot([one.latency_ms] * 2, [one.alone.mean, one.row.mean], color=colour, linewidth=1, alpha=0.6, zorder=2)
        draw(one.alone, None, "white")
    draw(one.row, name.replace("$", r"\$"), colour if one.method != BASELINE else "white")
