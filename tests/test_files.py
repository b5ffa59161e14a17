"""A file holds all of its earlier content or all of the new one, whatever fails and whenever."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from spkd.errors import InputError
from spkd.files import (
    is_file,
    is_folder,
    is_there,
    locked,
    names_beside,
    read_json,
    require_writable,
    reserve,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)

UNTOUCHED = "what was there before is untouched"


@pytest.mark.parametrize("look", [is_file, is_folder, is_there])
def test_what_can_be_no_path_or_may_not_be_looked_at_is_not_there(
    look: Callable[[str | Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    kinds = {"file": [is_file, is_there], ".": [is_folder, is_there], "none": []}
    for name, looks in kinds.items():
        assert look(tmp_path / name) == look(str(tmp_path / name)) == (look in looks)
    assert not look(f"net.py:Net?blocks={'(1, 2), ' * 100}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    assert not look(tmp_path / "file")


def test_text_is_written_as_utf8_and_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ü.txt"
    write_text_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_text_of_a_name_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.md", f"of F{os.fsdecode(bytes([0xFC]))}")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == r"of F\udcfc"


def test_json_is_strict_and_keeps_every_text(tmp_path: Path) -> None:
    content = {"größe": None, "file": os.fsdecode(b"F\xfc")}
    write_json_atomically(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert (tmp_path / "x.json").read_text(encoding="utf-8").startswith('{\n  "größe": null,\n')
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json_atomically(tmp_path / "x.json", {"number": number})
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", None])
def test_what_is_no_json_object_is_read_as_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") is None


def test_an_earlier_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text_atomically(path, "a longer first one")
    write_text_atomically(path, "short")
    assert path.read_text() == "short"


def test_the_temporary_file_is_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        assert not (tmp_path / "weights.safetensors").exists()
        temporary.write_bytes(b"1")

    write_atomically(tmp_path / "weights.safetensors", write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".safetensors"
    assert not seen[0].exists()


@pytest.mark.parametrize("name", ["n" * 251 + ".csv", "ä" * 125 + "n.csv", "n" + "ä" * 125 + ".csv", "猫" * 85])
def test_a_name_may_be_as_long_as_the_file_system_takes(name: str, tmp_path: Path) -> None:
    require_writable(tmp_path / name)
    write_text_atomically(tmp_path / name, "1")
    assert (tmp_path / name).read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), InputError("mismatch")])
def test_whatever_stops_the_writer_leaves_the_earlier_content_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x.txt"
    path.write_text("earlier")

    def write(temporary: Path) -> None:
        temporary.write_text("half of")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(path, write)
    assert caught.value is error
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_has_the_mode_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text_atomically(tmp_path / "x.txt", "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_what_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "x.txt").write_text("earlier")
    (tmp_path / "x.txt").chmod(mode)
    (tmp_path / "link.txt").symlink_to("x.txt")
    for name in ("x.txt", "link.txt"):
        write_text_atomically(tmp_path / name, name)
        assert (tmp_path / "x.txt").stat().st_mode & 0o777 == mode
        assert (tmp_path / "x.txt").read_text() == name


def test_a_file_in_the_place_of_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"cannot write .*file/x\.txt: .*{UNTOUCHED}") as caught:
        write_text_atomically(tmp_path / "file" / "x.txt", "x")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*x\.txt: Is a directory"):
        write_text_atomically(tmp_path / "x.txt", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "x.txt"]


def test_a_place_is_known_to_be_writable_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    require_writable(tmp_path / "new" / "x.txt")
    assert list((tmp_path / "new").iterdir()) == []
    require_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""
    for place in (tmp_path / "file" / "x.txt", tmp_path / "new"):
        with pytest.raises(InputError, match="cannot write"):
            require_writable(place)


def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if os.geteuid() == 0:  # who may write anywhere
        monkeypatch.setattr("tempfile.mkstemp", refuse)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
            write_text_atomically(tmp_path / "x.txt", "x")
    finally:
        tmp_path.chmod(0o700)


# A limit on the size of files fails a write half-way, as a full disk does.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from spkd.errors import InputError
from spkd.files import write_text_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text_atomically(Path(sys.argv[1]), "x" * 100_000)
except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_up_half_way_leaves_the_earlier_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("earlier")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large; {UNTOUCHED}\n"
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys
from pathlib import Path
from spkd.files import write_text_atomically
for count in range(10**9):
    write_text_atomically(Path(sys.argv[1]), str(count % 10) * 1_000_000)
"""


@pytest.mark.parametrize("seconds", [0.05, 0.12, 0.2])
def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "x.txt"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as process:
        for _ in range(1000):
            if path.exists():
                break
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    text = path.read_text()
    assert len(text) == 1_000_000
    assert len(set(text)) == 1


def test_a_locked_folder_is_refused_to_others_until_it_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    refused = pytest.raises(InputError, match=r"another process is at work in .*folder: wait for it")
    with locked(folder, wait=False), refused, locked(folder, wait=False):
        pass
    with locked(folder, wait=False):
        pass
    with pytest.raises(InputError, match="cannot write"), locked(folder / ".lock" / "in a file", wait=True):
        pass


def test_a_lock_goes_with_the_process_that_had_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from spkd.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="another process"), locked(tmp_path, wait=False):
            pass
        other.kill()
    with locked(tmp_path, wait=True):
        pass


def test_a_child_that_outlives_its_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from spkd.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False):\n"
        "    if not os.fork(): print(os.getpid(), flush=True)  # once it has let go\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(InputError, match="another process"), locked(tmp_path, wait=False):
                pass
            parent.kill()
            parent.wait()
            with locked(tmp_path, wait=False):
                assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)


def test_without_locks_in_the_file_system_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unsupported(handle: int, operation: int) -> None:
        asked.append(operation)
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path, wait=False), locked(tmp_path, wait=True):
        assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


@pytest.mark.usefixtures("keeps_room")
def test_room_is_kept_for_a_file_and_what_is_in_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.data"
    path.write_bytes(b"begun")
    reserve(path, 1 << 20)
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == b"begun".ljust(1 << 20, b"\0")
    reserve(path, 10)
    assert path.stat().st_size == 1 << 20


@pytest.mark.usefixtures("keeps_room")
def test_room_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    code = f"""
import pathlib, resource, spkd.files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    spkd.files.reserve(pathlib.Path({str(tmp_path / "x")!r}), 1001)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_no_room_is_kept_behind_a_link(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "mine").touch()
    (tmp_path / "x.data").symlink_to("mine")
    with pytest.raises(OSError, match=r"it is a link; put the file itself there: '.*x\.data'"):
        reserve(tmp_path / "x.data", 1 << 20)
    assert (tmp_path / "mine").exists() == there
    assert not there or (tmp_path / "mine").stat().st_size == 0


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, None])
def test_where_no_room_can_be_kept_nothing_happens(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another file system, and on another system, which has no such function."""
    system = SimpleNamespace() if number is None else SimpleNamespace(fallocate=lambda *_: -1)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: system)
    monkeypatch.setattr("ctypes.get_errno", lambda: number)
    reserve(tmp_path / "x.data", 1 << 20)
    assert (tmp_path / "x.data").read_bytes() == b""


def test_of_a_link_the_file_is_replaced_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, place = tmp_path / "latest.csv", tmp_path / "disk" / "real.csv"
    link.symlink_to(place)
    for text in ("one", "two"):
        require_writable(link)
        write_text_atomically(link, text)
        assert (link.is_symlink(), place.read_text()) == (True, text)
    assert sorted(path.name for path in place.parent.iterdir()) == ["real.csv"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    require_writable(pipe)
    write_text_atomically(pipe, "three")
    assert reader.communicate(timeout=60)[0] == b"three"
    assert pipe.is_fifo()


def test_what_lies_beside_a_mistyped_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "large").mkdir(parents=True)
    (tmp_path / "models" / "file").touch()
    assert names_beside(tmp_path / "models" / "larg") == ["large"]
    assert names_beside(tmp_path / "nowhere" / "larg") == []
    (tmp_path / "models" / "large.onnx").touch()
    (tmp_path / "models" / "notes").touch()
    assert names_beside(tmp_path / "models" / "larg.onnx") == ["large", "large.onnx"]
    assert names_beside(tmp_path / "models" / "larg") == ["large"]
    monkeypatch.chdir(tmp_path)
    assert names_beside(Path("model")) == ["models"]
