"""CSV files as spreadsheets and tools write them."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st

from spkd.data.table import read_table
from spkd.errors import InputError

USUAL = ("path", "label")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_spreadsheets_write(file: Path, delimiter: str, end: str, mark: bytes) -> None:
    rows = [("path", "label"), ("a/ä.png", '"cat, ""big""; grey"'), ('"b\tc.png"', "dog")]
    file.write_bytes(mark + end.join(map(delimiter.join, rows)).encode() + end.encode())
    table = read_table(file, USUAL)
    assert table.columns == ("path", "label")
    assert table.rows == [["a/ä.png", 'cat, "big"; grey'], ["b\tc.png", "dog"]]
    assert table.numbers == [2, 3]


def test_rows_are_counted_as_spreadsheets_do(file: Path) -> None:
    file.write_text('\npath,label\n"a\nb.png",cat\n\n,\n , \nc.png,dog\n')
    table = read_table(file, USUAL)
    assert (table.rows, table.numbers) == ([["a\nb.png", "cat"], ["c.png", "dog"]], [3, 7])


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("image,class,p(a;b;c;d;e)", ("image", "class", "p(a;b;c;d;e)")),
        ("Path;Label;a,b,c,d", ("Path", "Label", "a,b,c,d")),
        ("id;kind", ("id", "kind")),
        ("alone", ("alone",)),
    ],
)
def test_the_header_tells_what_divides_cells(file: Path, header: str, columns: tuple[str, ...]) -> None:
    delimiter = ";" if ";" in header and not header.startswith("image") else ","
    file.write_text(f"{header}\n{delimiter.join('x' for _ in columns)}\n")
    assert read_table(file, ("path", "image", "label", "class")).columns == columns


cells = st.text(st.characters(exclude_categories=("Cs", "Zs"), exclude_characters="\0\r"), max_size=6)


@CASES
@given(st.lists(st.tuples(cells, cells), min_size=1), st.sampled_from(",;\t"))
def test_what_python_writes_is_read_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows, delimiter) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([USUAL, *rows, ("end", "x")])
    file = tmp_path_factory.mktemp("table") / "labels.csv"
    file.write_bytes(text.getvalue().encode())
    stripped = [[one.strip(), other.strip()] for one, other in rows]
    assert read_table(file, USUAL).rows == [row for row in [*stripped, ["end", "x"]] if any(row)]


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sheet.xml", bytes(range(256)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty; give it a row of names of columns"),
        (b"\n \n\n", "is empty; give it a row of names of columns"),
        (b"path,label\n\n", "has no row below its header; give it a row for each image"),
        (
            b"path,label\na.png,cat\nb.png,cat,dog\n",
            r"row 3 of .* has another number of cells \(3\) than its header \(2\); .* quotes .* ',' in it",
        ),
        (b"path;label\na.png\n", r"row 2 of .* has another number of cells \(1\) than its header \(2\); .* ';' in it"),
        (
            b"path\tlabel\na.png\n",
            r"row 2 of .* has another number of cells \(1\) than its header \(2\); .* a tab in it",
        ),
        (b'path,label\na.png,cat\n"b.png,dog\nc.png,dog\n', "row 3 of .* is no CSV .*: a quote in it is not closed"),
        (b'path,label\n"a" b.png,cat\n', "row 2 of .* is no CSV .*: a quote in it .* written twice$"),
        (b'path,label\n"' + b"x" * 200_000, "row 2 of .* is no CSV .*: a quote in it is not closed"),
        ("path,label\na.png,cat\nb.png,Bär\n".encode("latin-1"), "line 3 of .* is not UTF-8; save it as CSV in UTF-8"),
        ("path,label\na.png,cat\n".encode("utf-16"), "line 1 of .* is not UTF-8; save it as CSV in UTF-8"),
        ("path,label\na.png,cat\n".encode("utf-16-le"), "line 1 of .* holds NUL; save it as CSV in UTF-8"),
        (b"path,label\na.png,cat\nb\0.png,dog\n", "line 3 of .* holds NUL; save it as CSV in UTF-8"),
        (zipped(), "line [0-9]+ of .* (is not UTF-8|holds NUL); save it as CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_told_in_one_line(file: Path, content: bytes, line: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^data: [^\n]*{line}[^\n]*$"):
        read_table(file, USUAL)


def test_a_file_that_may_not_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"^data: cannot read [^\n]*labels\.csv \(Permission denied\); check its perm"):
        read_table(file, USUAL)
