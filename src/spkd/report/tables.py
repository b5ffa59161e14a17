"""A comparison as a table, for the terminal and for Markdown."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from spkd.studies.records import Comparison, ComparisonRow

NOT_KNOWN = "–"
_HEADINGS = ("method", "seeds", "median", "mean ± s.e.m.", "difference to none", "95 % interval", "p")


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
    table = Table(title=Text(comparison.title), caption=Text(_caption(comparison)), box=box.SIMPLE_HEAD)
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in comparison.rows:
        # Text, not str: the method may hold square brackets, which rich would take for markup.
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """Return the same table in Markdown, with the command that repeats it below."""
    lines = [f"**{comparison.title}**", ""] if comparison.title else []
    lines += [_line(_HEADINGS), "|:---|" + "---:|" * (len(_HEADINGS) - 1)]
    lines += [_line([cell.replace("|", "\\|") for cell in _cells(row)]) for row in comparison.rows]
    lines += ["", _caption(comparison)]
    if comparison.command:
        lines += ["", f"```\n{comparison.command}\n```"]
    return "\n".join(lines) + "\n"


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    interval = NOT_KNOWN
    if row.interval is not None:
        interval = f"{signed(row.interval[0])} to {signed(row.interval[1])}"
    return (
        row.method,
        str(len(row.seeds)),
        f"{row.median:.2f}",
        f"{row.mean:.2f}" if row.sem is None else f"{row.mean:.2f} ± {row.sem:.2f}",
        NOT_KNOWN if row.difference_to_none is None else signed(row.difference_to_none),
        interval,
        p_value_text(row.p_value),
    )


def signed(value: float) -> str:
    """Return two decimals with a sign and a true minus; what rounds to zero has no sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _caption(comparison: Comparison) -> str:
    caption = f"Test error in % of {comparison.student} on {comparison.data}"
    spec, error = comparison.teacher.get("spec"), comparison.teacher.get("test_error")
    if spec is not None:
        caption += f"; teacher {spec}"
        if isinstance(error, int | float):
            caption += f" ({error:.2f} %)"
    return f"{caption}. p: two-sided t-test against none, paired by seed."


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
