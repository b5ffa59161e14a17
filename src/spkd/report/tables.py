"""A comparison as a table, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from rich.table import Table

from spkd.report.grid import Grid, grid_markdown, grid_table
from spkd.studies.records import BASELINE, Comparison, ComparisonRow, unlike_steps, weak_teacher
from spkd.studies.statistics import holm
from spkd.training.recipe import Select

NOT_KNOWN = "–"
MEASURES: Mapping[Select, str] = {"error": "test error", "balanced": "balanced test error"}
"""What errors are called, by measure."""


def p_value_text(p_value: float | None) -> str:
    """Return a p-value with as many digits as mean something.

    >>> [p_value_text(p) for p in (0.4321, 0.0062, 0.00004, None)]
    ['0.43', '0.006', '< 0.001', '–']
    """
    if p_value is None:
        return NOT_KNOWN
    if p_value < 0.001:
        return "< 0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def comparison_table(comparison: Comparison) -> Table:
    """Return a rich table: one line for each method, test errors in percent."""
    return grid_table(_grid(comparison))


def comparison_markdown(comparison: Comparison) -> str:
    """Return the same table in Markdown, with the command that repeats it below."""
    return grid_markdown(_grid(comparison), comparison.command)


def _grid(comparison: Comparison) -> Grid:
    difference = f"difference to {comparison.baseline}"
    headings = ["method", "seeds", "val.", "median", "mean ± s.e.m.", difference, "95 % interval", "p"]
    rows = [_cells(row) for row in comparison.rows]
    if comparison.other_rows:
        headings.insert(5, f"{comparison.other_measure} ± s.e.m.")
        rows = [
            (*cells[:5], mean_text(other), *cells[5:]) for cells, other in zip(rows, comparison.other_rows, strict=True)
        ]
    if _is_corrected(comparison):
        methods = [row for row in comparison.rows if row.method != comparison.baseline]
        corrected = dict(zip((row.method for row in methods), holm([row.p_value for row in methods]), strict=True))
        headings.append("p (Holm)")
        rows = [(*cells, p_value_text(corrected.get(cells[0]))) for cells in rows]
    title = comparison.title + (", by the balanced error" if comparison.measure == "balanced" else "")
    return Grid(title, tuple(headings), tuple(rows), (_caption(comparison), *_warnings(comparison)))


def _is_corrected(comparison: Comparison) -> bool:
    """Return whether there are several tests, and one at least has a p-value."""
    return len(comparison.rows) > 2 and any(row.p_value is not None for row in comparison.rows)


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    return (row.method, f"{len(row.seeds)}{pairs_text(row)}", f"{mean(row.val_errors):.2f}", *statistics_cells(row))


def statistics_cells(row: ComparisonRow) -> tuple[str, ...]:
    """Return median, mean with its standard error, difference, interval and p-value, as they stand in a table."""
    interval = NOT_KNOWN if row.interval is None else f"{signed(row.interval[0])} to {signed(row.interval[1])}"
    return (
        f"{row.median:.2f}",
        mean_text(row),
        NOT_KNOWN if row.difference is None else signed(row.difference),
        interval,
        p_value_text(row.p_value),
    )


def mean_text(row: ComparisonRow) -> str:
    """Return the mean of the test errors, with its standard error where there are several seeds."""
    return f"{row.mean:.2f}" if row.sem is None else f"{row.mean:.2f} ± {row.sem:.2f}"


def pairs_text(row: ComparisonRow) -> str:
    """Return the number of pairs, to stand behind that of the seeds; nothing where the two are the same.

    >>> none = ComparisonRow("none", (0,), (3.0,), (2.0,), 3.0, 3.0, None)
    >>> sp = ComparisonRow("sp", (0, 1), (2.0, 2.5), (1.0, 1.0), 2.25, 2.25, 0.25, -1.0, pairs=1)
    >>> pairs_text(none), pairs_text(sp)
    ('', ' (1 pair)')
    """
    if row.pairs is None or row.pairs == len(row.seeds):
        return ""
    return f" ({row.pairs} pair{'s' * (row.pairs != 1)})"


def signed(value: float) -> str:
    """Return two decimals with a sign and a true minus; what rounds to zero has no sign.

    Values that differ in their last bits only, as means of the same differences do, are rounded alike.

    >>> signed(-0.555), signed(-0.5549999999999999), signed(-0.001)
    ('−0.56', '−0.56', '0.00')
    """
    text = f"{round(value, 10):+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _warnings(comparison: Comparison) -> tuple[str, ...]:
    def both(measure: Select, rows: Sequence[ComparisonRow]) -> tuple[float | None, float | None]:
        alone = next((row.median for row in rows if row.method == BASELINE), None)
        return comparison.teacher_error(measure), alone

    own = {comparison.measure: comparison.rows, comparison.other_measure: comparison.other_rows}
    error, balanced = (both(measure, own[measure]) for measure in ("error", "balanced"))
    warning = weak_teacher(*error, balanced)
    return tuple(f"Warning: {one}." for one in (warning, _unlike_steps(comparison)) if one is not None)


def _unlike_steps(comparison: Comparison) -> str | None:
    """Return a warning where the student alone was trained for another number of steps than those with the teacher."""
    taught = next((steps for method, steps in comparison.steps.items() if method != BASELINE), None)
    unlike = unlike_steps(comparison.steps.get(BASELINE), taught, comparison.epochs)
    if unlike is None:
        return None
    said, epochs = unlike
    return f"{said}; --methods {BASELINE} --epochs {epochs} with another --out gives it as many"


def _caption(comparison: Comparison) -> str:
    name = MEASURES[comparison.measure]
    caption = f"{name[0].upper()}{name[1:]} in % of {comparison.student} on {comparison.data}"
    spec, error = comparison.teacher.get("spec"), comparison.teacher_error(comparison.measure)
    if spec is not None:
        caption += f"; teacher {spec}"
        if error is not None:
            caption += f" ({error:.2f} %)"
    if comparison.other_rows:
        caption += f"; {comparison.other_measure}: mean {MEASURES[comparison.other_measure]}"
    against = f"against {comparison.baseline}, paired by seed"
    test = f"t-test {against}"
    if _is_corrected(comparison):
        test = f"t-tests {against}; p (Holm): corrected for their number"
    validated = "balanced validation error" if comparison.measure == "balanced" else "validation error"
    return f"{caption}. val.: mean {validated}, to choose by. p: two-sided {test}."
