"""What a process may use is what its machine lets it."""

import builtins
import io
import os

import pytest

from spkd.machine import usable_cpus


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
