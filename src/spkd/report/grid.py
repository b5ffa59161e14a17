"""A table of text, and its forms: for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from spkd.errors import printable
from spkd.files import csv_text, write_text_atomically
from spkd.studies.published import Certainty

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "γ": r"$\gamma$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
}


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: a line above it.
        headings: one for each column.
        rows: as many cells in each as there are headings.
        notes: lines below it.
        texts: how many columns, from the left, hold text and not numbers.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: int = 1


def as_text(text: str) -> Text:
    """Return what the terminal is to show as it is: brackets are no markup, and what would not be seen is escaped."""
    return Text(printable(text))


def grid_table(grid: Grid) -> Table:
    """Return the table for a terminal."""
    table = Table(title=as_text(grid.title), caption=Text("\n".join(map(printable, grid.notes))), box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding, table.caption_justify = False, True, "left"
    for number, heading in enumerate(grid.headings):
        if number < grid.texts:
            table.add_column(as_text(heading), overflow="fold")
        else:
            # No number is divided, on however narrow a terminal.
            width = max((len(word) for row in grid.rows for word in row[number].split()), default=None)
            table.add_column(as_text(heading), justify="right", overflow="fold", min_width=width)
    for row in grid.rows:
        table.add_row(*map(as_text, row))
    return table


def grid_markdown(grid: Grid, command: str = "") -> str:
    """Return the table in Markdown, with the command that makes it below where one is given.

    >>> print(grid_markdown(Grid("T", ("a", "b"), (("x|y", "1"),), ("note",))), end="")
    **T**
    <BLANKLINE>
    | a | b |
    |:---|---:|
    | x\\|y | 1 |
    <BLANKLINE>
    note
    """
    rule = "|" + "".join(":---|" if number < grid.texts else "---:|" for number in range(len(grid.headings)))
    lines = [f"**{grid.title}**", ""] if grid.title else []
    lines += [_line(grid.headings), rule, *(_line(row) for row in grid.rows)]
    for note in grid.notes:
        lines += ["", note]
    if command:
        lines += ["", "```", command, "```"]
    return "\n".join(lines) + "\n"


def grid_csv(grid: Grid) -> str:
    """Return headings and cells as CSV, without title and notes: marks of certainty stand in words."""
    return csv_text([grid.headings, *(map(_in_words, row) for row in grid.rows)])


def grid_latex(grid: Grid) -> str:
    r"""Return the table as LaTeX, for a document that uses the package booktabs.

    >>> print(grid_latex(Grid("5 %", ("a", "b"), (("x_1", "1 ± 2"),))), end="")
    \begin{table}
    \centering
    \caption{5 \%}
    \begin{tabular}{lr}
    \toprule
    a & b \\
    \midrule
    x\_1 & 1 $\pm$ 2 \\
    \bottomrule
    \end{tabular}
    \end{table}
    """
    columns = "".join("l" if number < grid.texts else "r" for number in range(len(grid.headings)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\toprule", _latex_line(grid.headings), r"\midrule", *(_latex_line(row) for row in grid.rows)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {_latex(note)}" for note in grid.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def write_grid(grid: Grid, stem: Path) -> list[Path]:
    """Write the table as ``stem`` with ``.md``, ``.csv`` and ``.tex`` and return the paths.

    Raises:
        InputError: when they cannot be written.
    """
    forms = {".md": grid_markdown, ".csv": grid_csv, ".tex": grid_latex}
    paths = [stem.with_name(stem.name + ending) for ending in forms]
    for path, form in zip(paths, forms.values(), strict=True):
        write_text_atomically(path, form(grid))
    return paths


def _in_words(cell: str) -> str:
    for certainty in Certainty:
        cell = cell.replace(certainty.mark, certainty.name.lower())
    return cell


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
