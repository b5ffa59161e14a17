"""Which image files cannot be read, as is found now, or was by an earlier call on the same files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL

from spkd import __version__
from spkd.data.decoding import decoding_fault, map_files, patiently
from spkd.data.formats import FORMATS
from spkd.errors import InputError
from spkd.files import locked, read_json, write_json_atomically
from spkd.machine import is_follower

MANY = 10_000
"""Files from which on it is kept which can be read: a million are decoded in minutes, their dates read in seconds."""
_log = logging.getLogger(__name__)


def faults_of(paths: Sequence[str]) -> list[str | None]:
    """Return why each file cannot be read as :func:`~spkd.data.decoding.read_image` does, None where it can.

    Every file is decoded. Of many it is kept in the user's cache folder which could be read, for as long as none of
    them has another size or date, so that neither later commands nor the other processes of a run decode them again.
    """
    if len(paths) < MANY or (folder := _place(paths)) is None:
        return map_files(decoding_fault, paths)
    record = folder / "unreadable.json"
    if (known := read_json(record)) is None:
        with _alone_in(folder):
            if (known := read_json(record)) is None:
                faults = map_files(decoding_fault, paths)
                bad = [path for path, fault in zip(paths, faults, strict=True) if fault is not None]
                with contextlib.suppress(InputError):
                    write_json_atomically(record, {"unreadable": bad})
                return faults
    # A disk may have been the reason.
    bad = known["unreadable"]
    again = dict(zip(bad, map_files(decoding_fault, bad), strict=True))
    return [again.get(path) for path in paths]


def _place(paths: Sequence[str]) -> Path | None:
    """Return the folder for what is known of the files as they are, None where there can be none."""
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    # Of all that decides what can be read.
    digest = hashlib.sha256(f"{__version__} {PIL.__version__} {FORMATS}".encode())
    if not all(map(os.path.isabs, paths)):
        digest.update(os.fsencode(Path.cwd()))
    for path, state in zip(paths, map_files(_state, paths), strict=True):
        digest.update(os.fsencode(f"{path}\0{state}\0"))
    return above / "spkd" / "checked" / digest.hexdigest()


def _state(path: str) -> tuple[int, int] | None:
    """Return what changes with a file: its size and when it was written; None where that is not to be had."""
    try:
        found = patiently(os.stat, path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Have the folder to oneself where it can be written: one process decodes, and the others wait for it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=False))
        except InputError:
            if os.access(folder, os.W_OK):
                if not is_follower():
                    _log.warning("another process is looking at the same images: waiting for what it finds")
                with contextlib.suppress(InputError):
                    stack.enter_context(locked(folder, wait=True))
        yield
