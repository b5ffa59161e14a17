"""A training that waits for its images is told of it, and one that has them in time, or whose GPU is busy, is not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spkd.data.options import DataOptions
from spkd.training.options import Request, Runtime
from spkd.training.run import run
from spkd.training.waiting import INTERVAL, OFTEN, Waiting

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Machine:
    """A clock, and a GPU that works through what it is given, at its own pace."""

    def __init__(self) -> None:
        self.seconds, self.busy_until = 100.0, 0.0

    def computes(self, seconds: float) -> None:
        self.busy_until = max(self.seconds, self.busy_until) + seconds

    def is_awaited(self) -> None:
        self.seconds = max(self.seconds, self.busy_until)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    one = Machine()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = max(one.seconds, one.busy_until)

        def query(self) -> bool:
            return one.seconds >= self.at

        def elapsed_time(self, later: Any) -> float:
            assert later.query()
            return 1000 * (later.at - self.at)

    monkeypatch.setattr("time.perf_counter", lambda: one.seconds)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)
    return one


def trained(
    machine: Machine,
    waits: Sequence[float],
    steps: Sequence[float] | float,
    *,
    device: torch.device = CPU,
    readers: int | None = 2,
    epochs: int = 1,
) -> list[str]:
    """Return what is said of epochs with so many seconds of waiting for each batch, and of work on it."""
    lines: list[str] = []
    watch = Waiting(device, readers, lines.append)

    def batches() -> Iterator[Any]:
        for number, wait in enumerate(waits):
            machine.seconds += wait
            yield number

    for _ in range(epochs):
        for number, batch in enumerate(watch.watched(batches())):
            assert batch == number
            took = steps if isinstance(steps, float) else steps[number]
            if device.type == "cuda":
                machine.computes(took)
                if number % 25 == 24:  # as the loop does that reads the losses
                    machine.is_awaited()
            else:
                machine.seconds += took
    return lines


def test_a_training_that_waits_for_images_is_told_once_how_much(machine: Machine) -> None:
    lines = trained(machine, [0.25] * 100, 0.25, readers=4)
    assert lines == [
        "warning: the training waited for images 50% of the last 10 seconds: more --workers (now 4), or smaller copies "
        "of large photos, may make it faster"
    ]


def test_one_that_has_them_in_time_is_not(machine: Machine) -> None:
    assert trained(machine, [0.0] * 100, 0.5) == []
    assert trained(machine, [0.5 * OFTEN] * 200, 0.5 * (1 - OFTEN) + 0.01) == []


def test_a_short_time_says_nothing(machine: Machine) -> None:
    assert trained(machine, [0.9] * 11, 0.1) == []  # of which two are the first
    assert trained(machine, [0.9] * 11, 0.1, epochs=2) != []


def test_the_readers_start_is_no_waiting(machine: Machine) -> None:
    """It comes with every epoch, and is over with the first batch of each reader."""
    assert trained(machine, [9.0, 0.0, 0.0, 0.0], 1.0, readers=1, epochs=20) == []
    assert trained(machine, [9.0, 0.0, 0.0, 0.0], 1.0, readers=0, epochs=20) != []  # which is the reading itself


def test_a_gpu_that_is_behind_does_not_wait(machine: Machine) -> None:
    """The loop waits for half the time, while the GPU has enough to do."""
    assert trained(machine, [0.05] * 500, 0.1, device=CUDA) == []
    assert machine.seconds - 100 > 4 * INTERVAL
    assert len(trained(machine, [0.05] * 500, 0.1)) == 1


def test_a_gpu_that_has_nothing_to_do_waits(machine: Machine) -> None:
    """For 0.06 of each 0.1 s, and at every 25th step, whose end the loop awaits, for 0.1 of 0.14."""
    [line] = trained(machine, [0.1] * 500, 0.04, device=CUDA)
    assert f"waited for images {(24 * 0.06 + 0.1) / (24 * 0.1 + 0.14):.0%} of the last" in line


@pytest.mark.parametrize(("device", "readers"), [(CPU, None), (torch.device("mps"), 4)])
def test_nothing_is_measured_where_nothing_is_read_or_known(
    machine: Machine, device: torch.device, readers: int | None
) -> None:
    assert trained(machine, [0.9] * 100, 0.1, device=device, readers=readers) == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_run_looks_at_its_batches(
    in_memory: bool, tiny: str, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spkd.training.waiting.INTERVAL", 0.0)
    monkeypatch.setattr("spkd.training.waiting.OFTEN", 0.0)
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8 if in_memory else 9), 60).save(path)
    data = DataOptions(str(tmp_path / "pictures"), image_size=8, workers=1, grey=True)
    wanted = Request(model=tiny, data=data, overrides={"epochs": 3, "batch_size": 4})
    run(wanted, tmp_path / "run", Runtime(accelerator="cpu"), heard)
    assert sum("more --workers (now 1)" in line for line in heard.lines) == (not in_memory)
