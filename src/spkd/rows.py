"""Rows of comma-separated values that are written once all are there, though they be more than the memory holds."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from spkd.errors import InputError
from spkd.files import is_device, write_atomically

KEPT = 64 * 2**20
"""Bytes of rows that are held in memory; more are in a file without a name, which ends with the process."""


class Rows:
    """Rows of cells as CSV, in the order in which they are added.

    Args:
        beside: the file that they are for, in whose folder they wait; None: where temporary files do.

    >>> with Rows() as rows:
    ...     rows.add(["image", "share"])
    ...     rows.add(["cats, dogs.jpg", 0.5])
    ...     print(*rows.lines(), sep="", end="")
    image,share
    "cats, dogs.jpg",0.5
    """

    def __init__(self, beside: Path | None = None) -> None:
        folder = None if beside is None or is_device(beside) else str(Path(os.path.realpath(beside)).parent)
        self._place = folder
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115, closed by __exit__
            KEPT, "w+", encoding="utf-8", newline="\n", dir=folder
        )
        self._write = csv.writer(self._file, lineterminator="\n").writerow

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # a full disk has been told of
            self._file.close()

    def add(self, cells: Iterable[object]) -> None:
        """Add a row.

        Raises:
            InputError: when there is no room for it.
        """
        with self._told():
            self._write(cells)

    def lines(self) -> Iterator[str]:
        """Iterate over the lines of all rows.

        Raises:
            InputError: when there was no room for them.
        """
        with self._told():
            self._file.seek(0)
        yield from self._file

    def save(self, path: Path) -> None:
        """Write the rows to ``path``, as :func:`~spkd.files.write_atomically` does."""

        def copy(temporary: Path) -> None:
            self._file.seek(0)
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                shutil.copyfileobj(self._file, file)

        write_atomically(path, copy)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = self._place or tempfile.tempdir or "any folder for such"  # known once it was needed
            raise InputError(f"cannot write a temporary file in {place}: {error.strerror or error}") from error
