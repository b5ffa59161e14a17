"""Tables in CSV files, as spreadsheets and labelling tools write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spkd.errors import InputError

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """The cells of a file, without spaces around them; rows of empty cells are left out.

    Attributes:
        file: where it was read.
        columns: names of the columns.
        rows: the cells of each row, as many as there are columns.
        numbers: of each row, as a spreadsheet counts them: from 1, that of the header.
    """

    file: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    numbers: list[int]


def read_table(file: Path, usual: Collection[str]) -> Table:
    """Read a file whose first row, but for empty ones, names the columns.

    It is UTF-8, with or without a mark of that at its beginning; cells are divided by commas, semicolons or tabs, by
    whichever the header has most of the ``usual`` names of columns, else most columns, and quoted as by spreadsheets.

    Raises:
        InputError: when it cannot be read, is empty, is no UTF-8, holds NUL, a quote in it is not closed, or a row has
            another number of cells than the header.
    """
    text = _text(file)
    delimiter = _delimiter(text, usual)
    columns: tuple[str, ...] = ()
    rows, numbers = [], []
    for number, cells in _records(file, text, delimiter):
        if not columns:
            columns = tuple(cells)
        elif len(cells) != len(columns):
            raise InputError(
                f"data: row {number} of {file} has another number of cells ({len(cells)}) than its header "
                f"({len(columns)}); give each row as many, and put quotes around a cell with {_shown(delimiter)} in it"
            )
        else:
            rows.append(cells)
            numbers.append(number)
    if not columns:
        raise InputError(f"data: {file} is empty; give it a row of names of columns, as path and label, and its rows")
    if not rows:
        raise InputError(f"data: {file} has no row below its header; give it a row for each image")
    return Table(file, columns, rows, numbers)


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"data: cannot read {file} ({error.strerror or error}); check its permissions") from error
    advice = "save it as CSV in UTF-8, which spreadsheets call CSV UTF-8"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"data: line {line} of {file} is not UTF-8; {advice}") from error
    if "\0" in text:
        raise InputError(f"data: line {text.count(chr(10), 0, text.index(chr(0))) + 1} of {file} holds NUL; {advice}")
    return text


def _delimiter(text: str, usual: Collection[str]) -> str:
    """Return what divides cells: what gives most of the usual names, then what gives most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            header = next((_stripped(cells) for cells in rows if any(_stripped(cells))), [])
        except csv.Error:
            return 0, 0
        return sum(name in usual or name.lower() in usual for name in header), len(header)

    return max(_DELIMITERS, key=found)


def _records(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each row that is not empty."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    number = 0
    try:
        for number, cells in enumerate(rows, 1):
            if any(stripped := _stripped(cells)):
                yield number, stripped
    except csv.Error as error:
        raise InputError(
            f"data: row {number + 1} of {file} is no CSV ({error}): a quote in it is not closed, or stands inside a "
            "cell, where it is to be written twice"
        ) from error


def _stripped(cells: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in cells]


def _shown(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else f"'{delimiter}'"
