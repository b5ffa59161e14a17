"""Which image files cannot be read, as is found now, or was by an earlier call of those that have not changed since."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from spkd import __version__
from spkd.data.decoding import decoding_fault, map_files, patiently
from spkd.data.formats import FORMATS
from spkd.errors import InputError
from spkd.files import locked, write_bytes_atomically
from spkd.machine import is_follower

MANY = 10_000
"""Files from which on it is kept which can be read: a million are decoded in minutes, their dates read in seconds."""
_SEEN = np.dtype([("file", "<u8"), ("readable", "?")])
"""What is kept of each file: a hash of name, size and date, and whether it could be read."""
_log = logging.getLogger(__name__)


def faults_of(paths: Sequence[str]) -> list[str | None]:
    """Return why each file cannot be read as :func:`~spkd.data.decoding.read_image` does, None where it can.

    Of many it is kept in the user's cache folder which could be read, so that neither later commands nor the other
    processes of a run decode a file again that has the same size and date. There is a record for each folder in which
    all the files of a call lie, and it is of those of the last call that met a new file.
    """
    if len(paths) < MANY or (cache := _cache()) is None:
        return map_files(decoding_fault, paths)
    # Of the first and the last in order, which is that of all, in less time.
    common = os.path.commonpath([min(paths), max(paths)])
    files = np.array(map_files(partial(_hash, above=f"{common}{os.sep}"), paths), dtype=np.uint64)
    # These, too, decide what can be read.
    named = f"{__version__} {PIL.__version__} {FORMATS} {os.path.realpath(common)}"
    folder = cache / hashlib.sha256(os.fsencode(named)).hexdigest()
    record = folder / "seen"
    doubtful, any_new = _doubtful(files, record)
    if any_new:
        with _alone_in(folder):
            doubtful, any_new = _doubtful(files, record)
            if any_new:
                faults = _faults_among(doubtful, paths)
                with contextlib.suppress(InputError):
                    write_bytes_atomically(record, _content(files, faults))
                return faults
    return _faults_among(doubtful, paths)


def _cache() -> Path | None:
    """Return the folder for what is known of files, None where there can be none."""
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return above / "spkd" / "checked"


def _hash(path: str, above: str) -> int:
    """Return 64 bits of what changes with a file: its name below a folder, its size and when it was written.

    These are None where they are not to be had.
    """
    try:
        found = patiently(os.stat, path)
        state = found.st_size, found.st_mtime_ns
    except OSError:
        state = None
    named = os.fsencode(f"{path.removeprefix(above)}\0{state}")
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")


def _doubtful(files: NDArray[np.uint64], record: Path) -> tuple[NDArray[np.int64], bool]:
    """Return the places of the files that are not known to be readable, and whether any was never looked at."""
    try:
        seen = np.fromfile(record, dtype=_SEEN)  # of a damaged one, what is left of it
    except OSError:
        seen = np.empty(0, dtype=_SEEN)
    places = np.flatnonzero(~np.isin(files, seen["file"][seen["readable"]]))
    return places, not np.isin(files[places], seen["file"][~seen["readable"]]).all()


def _content(files: NDArray[np.uint64], faults: Sequence[str | None]) -> bytes:
    """Return what is kept of files."""
    seen = np.empty(len(files), dtype=_SEEN)
    seen["file"] = files
    seen["readable"] = [fault is None for fault in faults]
    return seen.tobytes()


def _faults_among(doubtful: NDArray[np.int64], paths: Sequence[str]) -> list[str | None]:
    """Decode the files at these places; return the fault of each file."""
    # Those that could not be read among them: a disk may have been the reason.
    places = doubtful.tolist()
    faults: list[str | None] = [None] * len(paths)
    for place, fault in zip(places, map_files(decoding_fault, [paths[place] for place in places]), strict=True):
        faults[place] = fault
    return faults


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Have the folder to oneself where it can be written: one process decodes, and the others wait for it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=False))
        except InputError:
            if os.access(folder, os.W_OK):
                if not is_follower():
                    _log.warning("another process is checking the same images: waiting for its result")
                with contextlib.suppress(InputError):
                    stack.enter_context(locked(folder, wait=True))
        yield
