"""A training on a crowded machine is told of it, and one on a quiet machine is not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spkd.training import crowding
from spkd.training.crowding import INTERVAL, OFTEN, Crowding
from spkd.training.options import Request, Runtime
from spkd.training.run import run

CPU = torch.device("cpu")


class Machine:
    """A clock and a count of how often threads were put off their cores."""

    def __init__(self) -> None:
        self.seconds, self.times = 100.0, 1_000_000

    def passes(self, seconds: float, a_second_and_thread: float) -> None:
        self.seconds += seconds
        self.times += round(seconds * a_second_and_thread * 2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    one = Machine()
    monkeypatch.setattr("time.monotonic", lambda: one.seconds)
    monkeypatch.setattr(crowding, "_times_put_off", lambda: one.times)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    return one


def told(machine: Machine, device: torch.device = CPU, *, rates: tuple[float, ...]) -> list[str]:
    lines: list[str] = []
    watch = Crowding(device, lines.append)
    watch.look()
    for rate in rates:
        for _ in range(20):
            machine.passes(INTERVAL / 10, rate)
            watch.look()
    return lines


def test_a_crowded_machine_is_told_once(machine: Machine) -> None:
    lines = told(machine, rates=(OFTEN / 2, OFTEN * 1.2, OFTEN * 1.2))
    assert len(lines) == 1
    assert "OMP_WAIT_POLICY=passive" in lines[0]


def test_a_quiet_machine_and_a_short_burst_are_not(machine: Machine) -> None:
    assert told(machine, rates=(0.0, OFTEN * 0.9)) == []
    lines: list[str] = []
    watch = Crowding(CPU, lines.append)
    watch.look()
    for rate in (OFTEN * 4, 0.0):  # the mean is under the limit as soon as it is looked at
        machine.passes(INTERVAL / 5, rate)
        watch.look()
    machine.passes(INTERVAL, 0.0)
    watch.look()
    assert lines == []


@pytest.mark.parametrize("case", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "one thread", "another system", "a GPU"])
def test_nothing_is_said_where_nothing_would_be_gained(
    case: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "one thread":
        monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    elif case == "another system":
        monkeypatch.setattr("sys.platform", "darwin")
    elif case != "a GPU":
        monkeypatch.setenv(case, "1")
    device = torch.device("cuda" if case == "a GPU" else "cpu")
    assert told(machine, device, rates=(OFTEN * 2, OFTEN * 2)) == []


def test_a_run_looks_at_its_steps(
    tiny: str, machine: Machine, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock() -> float:
        machine.passes(INTERVAL / 50, OFTEN * 2)
        return machine.seconds

    monkeypatch.setattr("time.monotonic", clock)
    run(Request(model=tiny, overrides={"epochs": 5}), tmp_path / "run", Runtime(accelerator="cpu"), heard)
    assert sum("OMP_WAIT_POLICY" in line for line in heard.lines) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux counts")
def test_the_count_rises_where_others_want_the_core() -> None:
    """A process that shares one core with another that never rests."""
    code = (
        "import os, time\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from spkd.training.crowding import _times_put_off\n"
        "before, end = _times_put_off(), time.monotonic() + 1\n"
        "while time.monotonic() < end: pass\n"
        "print(_times_put_off() - before)\n"
    )
    rival = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass\n"
    with subprocess.Popen([sys.executable, "-c", rival]) as other:
        try:
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        finally:
            other.kill()
    assert int(found.stdout.split()[-1]) > 10
