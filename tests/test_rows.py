"""Rows are the same in memory and on the disk, and nothing but the file that was asked for stays."""

import csv
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from spkd import rows as module
from spkd.errors import InputError
from spkd.rows import Rows

CELLS = [
    ["image", "p(größe)"],
    ["a, b.jpg", 0.5],
    ["two\nlines\r", None],
    *([f"{place}.png", place] for place in range(99)),
]


@pytest.mark.parametrize("kept", [1, 1 << 20])
def test_rows_are_read_and_saved_as_they_were_added(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", kept)
    path = tmp_path / "rows.csv"
    path.write_text("earlier")
    with Rows(path) as rows:
        for cells in CELLS:
            rows.add(cells)
        assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]
        assert path.read_text() == "earlier"
        shown = "".join(rows.lines())
        rows.save(path)
    assert path.read_bytes().decode() == shown
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["" if cell is None else str(cell) for cell in cells] for cells in CELLS]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may have more than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(full_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    with Rows(tmp_path / "rows.csv") as rows:
        rows.add(["x" * 90_000])
        with pytest.raises(InputError, match=rf"^cannot write a temporary file in {tmp_path}: File too large$"):
            rows.add(["x" * 20_000])
    assert list(tmp_path.iterdir()) == []


def test_for_a_device_rows_wait_where_temporary_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with Rows(Path("/dev/null")) as rows, pytest.raises(InputError, match=f"file in {tmp_path / 'none'}: No such file"):
        rows.add(["x"])
