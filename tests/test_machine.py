"""What a process may use is what its machine lets it."""

import builtins
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spkd.machine import numbering_of_processes, usable_cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "150000\n"}, 8),
    ],
)
def test_a_container_s_share_of_the_processors_counts(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    made = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    exists, opened = os.path.exists, builtins.open
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(
        "os.path.exists", lambda path: path in made if str(path).startswith("/sys/fs/cgroup") else exists(path)
    )
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *given, **also: io.StringIO(made[path]) if path in made else opened(path, *given, **also),
    )
    assert usable_cpus() == expected


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="the system does not say")
def test_processes_are_numbered_alike_in_one_container(monkeypatch: pytest.MonkeyPatch) -> None:
    here = numbering_of_processes()
    assert here is not None
    code = "from spkd.machine import numbering_of_processes as n; print(n())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == f"{here}\n"
    monkeypatch.setattr(Path, "readlink", lambda path: Path("pid:[1]"))
    assert numbering_of_processes() not in (None, here)
