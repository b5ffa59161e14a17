"""Many files are decoded once, and again those that have changed."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spkd.data import faults
from spkd.data.decoding import decoding_fault
from spkd.data.faults import faults_of
from spkd.errors import InputError
from spkd.files import locked


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the files that are decoded, with a cache of its own and where four files are many."""
    seen: list[str] = []

    def decode(path: str) -> str | None:
        seen.append(path)
        return decoding_fault(path)

    monkeypatch.setattr(faults, "MANY", 4)
    monkeypatch.setattr(faults, "decoding_fault", decode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Return five files, the third of which is no image."""
    (tmp_path / "images").mkdir()
    found = [tmp_path / "images" / f"{number}.png" for number in range(5)]
    for number, path in enumerate(found):
        noise(number, 9, 7).save(path)
    found[2].write_bytes(b"x" * 999)
    return [str(path) for path in found]


def noise(seed: int, width: int, height: int) -> Image.Image:
    """Return an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def written(folder: Path) -> Path:
    """Return the one record in the cache."""
    (record,) = (folder / "cache").rglob("seen")
    return record


def expected(count: int = 5) -> list[str | None]:
    return ["not an image, or of an unknown format" if place == 2 else None for place in range(count)]


def test_only_files_that_are_new_or_have_changed_are_decoded(
    decoded: list[str], paths: list[str], tmp_path: Path
) -> None:
    assert faults_of(paths) == expected()
    assert sorted(decoded) == paths
    assert written(tmp_path).stat().st_size == 9 * 5, "of which a million are to fit"
    decoded.clear()
    assert faults_of(paths) == expected()
    assert decoded == [paths[2]], "what could not be read is tried again"
    before = Path(paths[2]).stat()
    noise(0, 4, 4).save(paths[2], format="BMP")
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes().ljust(999, b"\0"))
    os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded.clear()
    assert faults_of(paths) == [None] * 5, "a disk may have been the reason"
    for change, count in ((lambda path: os.utime(path, ns=(0, 0)), 2), (lambda path: Path(path).write_bytes(b"y"), 1)):
        change(paths[4])
        decoded.clear()
        found = faults_of(paths)
        assert decoded == [paths[2], paths[4]][-count:], "and the third is known to be readable after the first change"
    assert found[4] is not None


def test_a_file_more_or_fewer_leaves_what_is_known_of_the_others(
    decoded: list[str], paths: list[str], tmp_path: Path
) -> None:
    faults_of(paths)
    more = [f"{tmp_path}/images/{name}.png" for name in ("0a", "9")]
    for number, path in enumerate(more):
        noise(number, 9, 7).save(path)
    decoded.clear()
    assert faults_of(sorted([*paths, *more])) == [None, None, *expected()[1:], None]
    assert sorted(decoded) == sorted([paths[2], *more])
    Path(paths[1]).unlink()
    Path(paths[0]).replace(paths[1])
    decoded.clear()
    assert faults_of([*paths[1:], *more]) == [None, *expected()[2:], None, None]
    assert sorted(decoded) == paths[1:3], "one with the size and date of another is not that one"
    assert written(tmp_path).stat().st_size == 9 * 6, "of one that is gone nothing is kept"


def test_folders_have_a_record_each(decoded: list[str], paths: list[str], tmp_path: Path) -> None:
    others = []
    for path in paths:
        (tmp_path / "others").mkdir(exist_ok=True)
        others.append(str(tmp_path / "others" / Path(path).name))
        noise(0, 5, 5).save(others[-1])
        os.utime(others[-1], ns=(0, Path(path).stat().st_mtime_ns))
    for _ in range(2):
        decoded.clear()
        assert faults_of(paths) == expected()
        assert faults_of(others) == [None] * 5
    assert decoded == [paths[2]]


def test_a_damaged_record_makes_no_file_readable(decoded: list[str], paths: list[str], tmp_path: Path) -> None:
    faults_of(paths)
    record = written(tmp_path)
    whole = record.read_bytes()
    for damaged, count in ((whole[: 9 * 3 + 4], 3), (whole[1:], 5), (b"", 5)):
        record.write_bytes(damaged)
        decoded.clear()
        assert faults_of(paths) == expected()
        assert len(decoded) == count
        assert record.read_bytes() == whole


def test_another_version_looks_for_itself(
    decoded: list[str], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults_of(paths)
    for name in ("__version__", "FORMATS"):
        monkeypatch.setattr(faults, name, "another")
        decoded.clear()
        faults_of(paths)
        assert sorted(decoded) == paths


def test_of_few_files_nothing_is_kept(decoded: list[str], paths: list[str], tmp_path: Path) -> None:
    assert faults_of(paths[:3]) == expected(3)
    assert not (tmp_path / "cache").exists()


def test_a_dead_link_is_one_that_cannot_be_read(decoded: list[str], paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    for count in (6, 2):
        decoded.clear()
        assert faults_of([*paths, f"{tmp_path}/link.png"]) == [*expected(), "No such file or directory"]
        assert len(decoded) == count
    noise(0, 4, 4).save(tmp_path / "nowhere.png")
    decoded.clear()
    assert faults_of([*paths, f"{tmp_path}/link.png"]) == [*expected(), None]
    assert len(decoded) == 2


@pytest.mark.parametrize("there", [False, True])
def test_a_cache_that_cannot_be_written_is_done_without(
    there: bool,
    decoded: list[str],
    paths: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if there:  # the folder, in which another user's process has its lock
        faults_of(paths)
        written(tmp_path).unlink()
        next((tmp_path / "cache").rglob(".lock")).unlink()
        decoded.clear()

        def refuse(*given: object, **named: object) -> None:
            raise InputError("cannot write")

        monkeypatch.setattr(faults, "locked", refuse)
        monkeypatch.setattr(faults, "write_bytes_atomically", refuse)
        monkeypatch.setattr("os.access", lambda *given: False)
    else:
        (tmp_path / "cache").write_bytes(b"")
    for _ in range(2):
        assert faults_of(paths) == expected()
    assert len(decoded) == 10
    assert caplog.messages == []


def test_it_is_kept_below_the_home_folder_where_no_other_place_is_named(
    decoded: list[str], paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for _ in range(2):
        assert faults_of(paths) == expected()
    assert sorted(decoded) == sorted([*paths, paths[2]])
    assert len([*(tmp_path / "home" / ".cache" / "spkd" / "checked").glob("*/seen")]) == 1


def test_nothing_is_kept_of_a_user_without_a_home(
    decoded: list[str], paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert faults_of(paths) == expected()
    assert sorted(decoded) == sorted([*paths, *paths])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_files_of_another_working_folder_are_others(
    decoded: list[str], paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [os.path.relpath(path, tmp_path) for path in paths]
    twin = tmp_path / "twin"
    (twin / "images").mkdir(parents=True)
    for name in names:
        (twin / name).write_bytes(b"x" * (tmp_path / name).stat().st_size)
        os.utime(twin / name, ns=(0, (tmp_path / name).stat().st_mtime_ns))
    monkeypatch.chdir(tmp_path)
    assert faults_of(names) == expected()
    monkeypatch.chdir(twin)
    assert None not in faults_of(names)


def test_a_folder_by_its_path_from_here_and_by_its_whole_path_is_one(
    decoded: list[str], paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults_of(paths)
    for place, above in ((tmp_path, "images"), (tmp_path / "images", ""), (tmp_path / "images", "../images")):
        monkeypatch.chdir(place)
        decoded.clear()
        names = [str(Path(above, Path(path).name)) for path in paths]
        assert faults_of(names) == expected()
        assert decoded == [names[2]]


def test_one_process_decodes_and_another_waits_for_it(
    decoded: list[str], paths: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults_of(paths)
    (folder,) = (tmp_path / "cache" / "spkd" / "checked").iterdir()
    kept = written(tmp_path).read_bytes()
    with locked(folder, wait=True):
        faults_of(paths)
    assert caplog.messages == [], "what is known is not waited for"
    (folder / "seen").unlink()
    decoded.clear()
    found: list[list[str | None]] = []
    waiting = threading.Thread(target=lambda: found.append(faults_of(paths)))
    with locked(folder, wait=True):
        waiting.start()
        deadline = time.monotonic() + 60
        while not caplog.messages:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        waiting.join(0.5)
        assert not found
        (folder / "seen").write_bytes(kept)
    waiting.join(20)
    assert found == [expected()]
    assert decoded == [paths[2]]
    assert caplog.messages == ["another process is checking the same images: waiting for its result"]
