"""Comparisons as a figure: every seed's dot, and each method's mean with its standard error.

The figure is drawn from records alone, without pyplot, so that it needs no display, leaves no global
state behind, and is the same file every time.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spkd.report.drawing import COLOURS, GREY
from spkd.report.tables import MEASURES, p_value_text, pairs_text
from spkd.studies.records import BASELINE, Comparison, ComparisonRow

_COLUMNS = 3  # panels beside each other
_DOTS_AT, _MEAN_AT = -0.08, 0.24  # beside each other, so that neither covers the other
_LABEL_WIDTH = 15


def comparison_figure(*comparisons: Comparison) -> Figure:
    """Draw a comparison, or several beside each other; each must have a row.

    One column for each method: a dot for each seed, beside them the mean with one standard error to
    either side; below, the method's name, the number of seeds and the p-value against the comparison's
    baseline. A seed has the same sideways offset in every column. The teacher's error, where it is known, is a
    dashed line.
    """
    single = len(comparisons) == 1
    across = min(_COLUMNS, len(comparisons))
    down = -(-len(comparisons) // across)
    sizes = [_panel_size(comparison) for comparison in comparisons]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    with style.context("default"):
        figure = Figure(figsize=(across * width, down * height), dpi=200 if single else 160, layout="constrained")
        for place, comparison in enumerate(comparisons):
            _draw_panel(figure.add_subplot(down, across, place + 1), comparison, int(11 * width))
        figure.supxlabel(_key(comparisons), fontsize=8.5 if single else 10, color="#444444")
    return figure


def _key(comparisons: Sequence[Comparison]) -> str:
    """Return what dots, diamonds and, where there are any, error bars and p-values mean."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    drawn = "dots: one seed each    diamond: mean" + " ± s.e.m." * any(row.sem is not None for row in rows)
    tested = sum(row.p_value is not None for row in rows)
    against = f"against {comparisons[0].baseline}"
    if tested > 1:
        return f"{drawn}\np: paired t-tests {against}, not corrected for their number"
    return drawn + f"    p: paired t-test {against}" * tested


def _panel_size(comparison: Comparison) -> tuple[float, float]:
    """Return width and height in inches."""
    labels = [_label(row) for row in comparison.rows]
    return max(5.2, 1.6 + 1.25 * len(labels)), 3.7 + 0.17 * max(label.count("\n") + 1 for label in labels)


def _draw_panel(axes: Axes, comparison: Comparison, title_width: int) -> None:
    labels = [_label(row) for row in comparison.rows]
    seeds = sorted({seed for row in comparison.rows for seed in row.seeds})
    for column, row in enumerate(comparison.rows):
        _draw_row(axes, column, row, _colour(comparison, row), seeds)
    _draw_teacher(axes, comparison)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylabel(f"{MEASURES[comparison.measure]} (%)", fontsize=11)
    axes.set_title("\n".join(textwrap.wrap(comparison.title, title_width)).replace("$", r"\$"), fontsize=11)
    axes.tick_params(axis="x", length=0, labelsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_row(axes: Axes, column: int, row: ComparisonRow, colour: str, seeds: list[int]) -> None:
    # Evenly beside each other in the order of the seeds, so that equal errors do not cover each other.
    offsets = [_DOTS_AT + 0.36 * ((seeds.index(seed) + 0.5) / len(seeds) - 0.5) for seed in row.seeds]
    axes.scatter(
        [column + offset for offset in offsets],
        row.test_errors,
        s=34,
        color=colour,
        alpha=0.85,
        edgecolors="white",
        linewidths=0.6,
        gid=f"seeds of {row.method}",
        zorder=3,
    )
    axes.errorbar(
        [column + _MEAN_AT],
        [row.mean],
        yerr=None if row.sem is None else [row.sem],
        fmt="D",
        markersize=6,
        color=colour,
        markeredgecolor="black",
        ecolor="black",
        elinewidth=1.4,
        capsize=4,
        capthick=1.4,
        zorder=4,
    )


def _draw_teacher(axes: Axes, comparison: Comparison) -> None:
    error = comparison.teacher_error(comparison.measure)
    if error is None:
        return
    axes.axhline(error, color="black", linestyle=(0, (5, 4)), linewidth=1, zorder=1)
    # Outside the frame, where no dot can be.
    axes.annotate(
        f"teacher\n{error:.2f} %",
        (1.0, error),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        verticalalignment="center",
        annotation_clip=False,
        fontsize=9,
    )


def _colour(comparison: Comparison, row: ComparisonRow) -> str:
    if row.method == BASELINE:
        return GREY
    others = [other.method for other in comparison.rows if other.method != BASELINE]
    return COLOURS[others.index(row.method) % len(COLOURS)]


def _label(row: ComparisonRow) -> str:
    lines = [_wrapped(row.method), f"n = {len(row.seeds)}"]
    if row.p_value is not None:
        lines[-1] += pairs_text(row)
        p_value = p_value_text(row.p_value)
        lines.append(f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}")
    return "\n".join(lines)


def _wrapped(method: str) -> str:
    """Break a long method after its punctuation, so that it does not run into its neighbour.

    >>> print(_wrapped("my_losses/contrast.py:Contrast?weight=3"))
    my_losses/
    contrast.py:
    Contrast?
    weight=3
    """
    lines = [""]
    for piece in re.findall(r"[^/:?&+]+[/:?&+]*|[/:?&+]+", method):
        if lines[-1] and len(lines[-1]) + len(piece) > _LABEL_WIDTH:
            lines.append("")
        lines[-1] += piece
    # A dollar sign would begin a formula.
    return "\n".join(lines).replace("$", r"\$")
