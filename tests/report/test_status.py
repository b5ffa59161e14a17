"""The table of a study's tasks tells what a person would ask."""

import pytest
from helpers import printed

from spkd.report.status import status_table, status_text
from spkd.studies.state import TaskState

STATES = (
    TaskState(
        "none/seed-0",
        "training",
        "done",
        result={"test_error": 2.5, "test_balanced_error": 4.0, "classes_unequal": True},
    ),
    TaskState("tape", "recording", "done", result={"steps": 3}),
    TaskState("sp/seed-0", "training", "running", host="node7", since=1000.0),
    TaskState("at/seed-0", "training", "running", host="node7", since=4600.0, epochs=(12, 200)),
    TaskState("at/seed-1", "training", "stopped", epochs=(3, 200)),
    TaskState("kd/seed-0", "training", "failed", reason="the loss [/] is not finite", since=4700.0 - 65),
    TaskState("figure", "measurement", "missing"),
)


def test_every_task_has_a_line_with_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spkd.report.status.time.time", lambda: 4700.0)
    lines = printed(status_table(STATES), width=140).splitlines()
    expected = {
        "none/seed-0": "test error 2.50 % (balanced 4.00 %)",
        "tape": "done",
        "sp/seed-0": "for 1:01:40 on node7",
        "at/seed-0": "12 of 200 epochs, for 1:40 on node7",
        "at/seed-1": "after 3 of 200 epochs",
        "kd/seed-0": "the loss [/] is not finite (1:05 ago)",
        "figure": "missing",
    }
    for name, text in expected.items():
        row = next(line for line in lines if line.strip().startswith(name))
        assert text in row


def test_the_counts_stand_on_one_line() -> None:
    assert status_text(STATES) == "7 tasks: 2 done, 2 running, 1 failed, 1 stopped, 1 missing"
