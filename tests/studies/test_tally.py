"""What is shown of a study while it runs."""

import pytest
from helpers import never

from spkd.studies import tally
from spkd.studies.schedule import Schedule
from spkd.studies.tally import Tally
from spkd.studies.tasks import Measurement, Task
from spkd.training.options import Request
from spkd.training.progress import Display, Lines


class Shown(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last: tuple[int, str, float | None] = (0, "", None)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def update(self, done: int, text: str, left: float | None = None) -> bool:
        self.last = (done, text, left)
        return True


def measure() -> dict[str, int]:
    return {}


def test_the_time_left_follows_from_tasks_of_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tally.time, "monotonic", lambda: now[0])
    tasks = [Task(name, Request(model="wrn-10-1")) for name in "abcd"]
    tasks += [Task(name, Measurement(measure, {})) for name in ("m", "n")]
    shown, schedule = Shown(), Schedule(tasks, {"d": {}}, {})
    counted = Tally(schedule, {"d": {}}, shown)
    assert shown.lines == ["1 of 6 tasks were already finished"]
    for _ in range(2):
        task = schedule.next(never)
        assert task is not None
        counted.begin(task)
    counted.show()
    assert shown.last == (1, "running: a, b", None)
    now[0] = 10.0
    schedule.finish("a", {"test_error": 2.5})
    counted.finish(tasks[0], {"test_error": 2.5, "test_balanced_error": 4.0, "select": "balanced"})
    counted.show()
    assert shown.lines[-1] == "[2/6] a: test error 2.50 % (balanced 4.00 %)"
    # Nothing is known of measurements yet: b has none of its 10 s left, c, m and n take 10 s each, one at a time.
    assert shown.last == (2, "running: b", 30.0)
    schedule.next(never)
    counted.begin(tasks[2])
    counted.show()
    assert shown.last == (2, "running: b, c", 15.0)
    now[0] = 12.0
    schedule.fail("b", "broken")
    counted.fail(tasks[1], "broken")
    counted.show()
    assert shown.lines[-1] == "[3/6] b: failed: broken"
    assert shown.last == (3, "running: c", 8.0 + 10.0 + 10.0)
    schedule.next(never)
    counted.begin(tasks[4])
    now[0] = 13.0
    schedule.finish("m", {})
    counted.finish(tasks[4], {})
    counted.show()
    assert shown.lines[-1] == "[4/6] m: done"
    assert shown.last == (4, "running: c", 7.0 + 1.0)


def test_what_is_running_is_shown_in_a_log_as_soon_as_it_is_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once: a task may run for hours."""
    now = [0.0]
    monkeypatch.setattr(tally.time, "monotonic", lambda: now[0])
    tasks = [Task(name, Request(model="wrn-10-1")) for name in "ab"]
    schedule = Schedule(tasks, {}, {})
    counted = Tally(schedule, {}, Lines())
    task = schedule.next(never)
    assert task is not None
    counted.begin(task)
    for _ in range(1000):
        counted.show()
        now[0] += 0.2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tasks: running: a, ")


def test_what_has_failed_before_is_said_at_once() -> None:
    tasks = [Task(name, Request(model="wrn-10-1")) for name in "abcde"]
    failed = {name: f"no {name}" for name in "abcd"}
    shown = Shown()
    Tally(Schedule(tasks, {}, failed), {}, shown)
    assert shown.lines == [
        "a is left out: no a",
        "b is left out: no b",
        "c is left out: no c",
        "... and 1 more task(s)",
    ]
