"""Every form of a table holds the same cells."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from helpers import printed

from spkd.report.grid import Grid, grid_csv, grid_latex, grid_markdown, grid_table, write_grid

GRID = Grid("10 % & more", ("name", "γ"), (("a|b_c", "−1.5 ± 0.2"), ("[red]", "7.52 †")), ("a note",))


def test_markdown_escapes_what_would_end_a_cell() -> None:
    lines = grid_markdown(GRID).splitlines()
    assert lines[2:6] == ["| name | γ |", "|:---|---:|", "| a\\|b_c | −1.5 ± 0.2 |", "| [red] | 7.52 † |"]
    assert lines[-1] == "a note"


def test_csv_holds_the_cells() -> None:
    rows = [["a|b_c", "−1.5 ± 0.2"], ["[red]", "7.52 unverified"]]
    assert list(csv.reader(io.StringIO(grid_csv(GRID)))) == [list(GRID.headings), *rows]


def test_latex_has_nothing_that_latex_would_choke_on() -> None:
    text = grid_latex(GRID)
    assert r"10 \% \& more" in text
    assert r"a|b\_c & $-$1.5 $\pm$ 0.2 \\" in text
    assert r"7.52 \textdagger{}" in text
    assert text.isascii()
    assert text.count(r"\begin{") == text.count(r"\end{")


def test_the_terminal_shows_brackets_as_they_are() -> None:
    text = printed(grid_table(GRID), width=100)
    for cell in (*GRID.rows[0], *GRID.rows[1], "a note"):
        assert cell in text


def test_the_terminal_is_given_no_sign_that_it_would_obey() -> None:
    odd = "\x1b[2J\r"
    text = printed(grid_table(Grid(odd, (f"0{odd}", f"1{odd}"), ((f"2{odd}", f"3{odd}"),), (f"4{odd}",))), width=100)
    assert "\x1b" not in text
    assert text.count("\\x1b[2J\\r") == 6


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write_grid(GRID, tmp_path / "deep" / "over.view")
    assert [path.name for path in paths] == ["over.view.md", "over.view.csv", "over.view.tex"]
    assert paths[0].read_text(encoding="utf-8") == grid_markdown(GRID)
