"""Files: moved into place once written, so that none is seen half; locks, room, hashes, looks, names, JSON, CSV."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import glob
import hashlib
import io
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spkd.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows, where the library can be imported
    fcntl = None  # type: ignore[assignment]

# For texts that may be paths: pathlib's own raise for a name that is too long or a place out of reach.
is_file, is_folder, is_there = os.path.isfile, os.path.isdir, os.path.exists
_LONGEST = 255  # bytes in a name
_LONGEST_NAME = _LONGEST - len("-alone")  # in that of a folder, beside which another may have that ending
_held: set[int] = set()  # handles of the locks of this process


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the result into place.

    The temporary file is flushed to the disk before the move and removed when anything fails, so
    ``path`` holds either its earlier content or all of the new one, and its earlier mode where there was a file. Parent
    folders are made. Of a link what it leads to is replaced; into a device or a pipe it is written at once.

    Raises:
        InputError: when the folder cannot be written or the disk is full (one line, names the path).
    """
    temporary = None
    try:
        if is_device(path):
            write(path)
            return
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        suffix = f".part{place.suffix}"
        room = _LONGEST - len(os.fsencode(suffix)) - 10  # for two dots and mkstemp's eight signs
        shown = os.fsencode(place.name)[:room].decode(errors="ignore")
        handle, name = tempfile.mkstemp(prefix=f".{shown}.", suffix=suffix, dir=place.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:  # before the chmod, which may forbid it
            temporary.chmod(stat.S_IMODE(place.stat().st_mode) if place.exists() else usual_mode())
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> list[Path]:
    """Return what calls of :func:`write_atomically` that were killed have left beside the file ``path``."""
    place = Path(os.path.realpath(path))
    return list(place.parent.glob(f".{glob.escape(place.name)}.*.part*"))


def require_writable(path: Path) -> None:
    """Return when :func:`write_atomically` may write the file ``path``; parent folders are made.

    For what is written only at the end of long work.

    Raises:
        InputError: when it is a folder, or its own folder cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if is_device(path):
            return
        folder = Path(os.path.realpath(path)).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def is_device(path: Path) -> bool:
    """Return whether a path leads to something that is neither a file nor a folder, and must not be replaced."""
    return path.exists() and not (path.is_file() or path.is_dir())


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Have a folder to oneself among the processes that ask for it, however this one ends.

    The lock is on a hidden file in the folder, which is made. Where the file system has no locks, nobody is kept out.

    Args:
        folder: what is locked.
        wait: whether to wait until another process gives it back; otherwise that is an error.

    Raises:
        InputError: when the folder cannot be written, or another process has it and ``wait`` is false.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; give another folder") from error
    _held.add(handle)
    try:
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(f"another process is at work in {folder}: wait for it, or give another folder") from error
        except OSError:
            pass
        yield
    finally:
        _let_go(handle)


def _let_go(handle: int) -> None:
    if handle in _held:
        _held.remove(handle)
        os.close(handle)


def _let_go_of_all() -> None:
    for handle in tuple(_held):
        _let_go(handle)


if hasattr(os, "register_at_fork"):  # or a child that outlives its parent would keep the folder locked
    os.register_at_fork(after_in_child=_let_go_of_all)


def write_bytes_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path``, as :func:`write_atomically` does.

    Serialise in memory and use this where a library reports a full disk by an error of its own.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, as :func:`write_atomically` does.

    Of a file's name that is no UTF-8 the bytes that are none are written as in Python.
    """
    write_bytes_atomically(path, text.encode(errors="backslashreplace"))


def write_json_atomically(path: Path, content: Mapping[str, object]) -> None:
    """Write ``content`` as JSON to ``path``, as :func:`write_atomically` does.

    Raises:
        ValueError: when there is a NaN or infinity in it, which JSON has not.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # What is no UTF-8 in a file's name becomes JSON's own escapes.
    write_bytes_atomically(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds; None where there is none, or it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def not_now(path: Path, error: OSError | MemoryError) -> InputError:
    """Return the error for a file that cannot be read at the moment, as where a disk or its server does not answer:
    that says nothing of what it holds.
    """
    reason = getattr(error, "strerror", None) or type(error).__name__
    return InputError(f"{path} cannot be read now ({reason}); it is left as it is: try again once it can be")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of cells as CSV.

    >>> print(csv_text([("image", "share"), ("cats, dogs.jpg", 0.5), ("b.jpg", None)]), end="")
    image,share
    "cats, dogs.jpg",0.5
    b.jpg,
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def usual_mode() -> int:
    """Return the mode of a new file as the process's umask has it, which temporary files' private mode passes over."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def open_to_write(path: Path) -> int:
    """Return a handle to write into the file ``path`` by, which is made; what is in it stays.

    Raises:
        OSError: when it cannot be written, or is a link, which may lead out of a folder that others have made.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link; put the file itself there", str(path)) from error


def reserve(path: Path, size: int) -> None:
    """Have the disk keep ``size`` bytes for the file ``path``, which is made; where nothing was written it holds zeros.

    Where the file system cannot, nothing is kept.

    Raises:
        OSError: when there is too little room, or as :func:`open_to_write`.
    """
    # Not os.posix_fallocate, which then writes to every block instead, and over what another process writes meanwhile.
    system = ctypes.CDLL(None, use_errno=True)
    handle = open_to_write(path)
    try:
        if hasattr(system, "fallocate") and system.fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
            number = ctypes.get_errno()
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(handle)


def names_beside(path: Path) -> list[str]:
    """Return what may be meant by a path that is not there: the folders beside it, and files that end alike."""
    with contextlib.suppress(OSError):
        beside = path.absolute().parent.iterdir()
        return sorted(entry.name for entry in beside if entry.is_dir() or entry.suffix == path.suffix != "")
    return []


def slug(text: str) -> str:
    """Return ``text`` as the name of a folder.

    >>> slug("timm/resnet18?in_chans=1")
    'timm-resnet18-in_chans=1'
    """
    name = re.sub(r"[^\w.+=-]+", "-", text).strip("-.")
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{name.encode()[: _LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def is_utf8(name: str) -> bool:
    """Return whether a file's name can be written as text, which on some systems may be any bytes.

    >>> is_utf8("Fu"), is_utf8(os.fsdecode(b"F\\xfc"))
    (True, False)
    """
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def require_utf8(option: str, path: Path) -> None:
    """Refuse a folder to be written to that TensorBoard and safetensors cannot open by its name.

    Raises:
        InputError: when the path is not UTF-8.
    """
    if not is_utf8(str(path)):
        raise InputError(f"{option} {path} is not UTF-8: give a folder of another name")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
