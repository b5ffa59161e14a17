"""The table of a study's tasks tells what a person would ask."""

import time

from rich.console import Console

from spkd.report.status import status_table, status_text
from spkd.studies.state import TaskState

STATES = (
    TaskState("none/seed-0", "training", {}, "done", result={"test_error": 2.345}),
    TaskState("tape", "recording", {}, "done", result={"steps": 3}),
    TaskState("sp/seed-0", "training", {}, "running", host="node7", since=time.time() - 3700),
    TaskState("kd/seed-0", "training", {}, "failed", reason="the loss [/] is not finite", since=time.time() - 65),
    TaskState("figure", "measurement", {}, "missing"),
)


def test_every_task_has_a_line_with_what_matters() -> None:
    console = Console(width=140, record=True, quiet=True)
    console.print(status_table(STATES))
    lines = console.export_text().splitlines()
    expected = {
        "none/seed-0": "test error 2.35 %",
        "tape": "done",
        "sp/seed-0": "for 1:01:4",
        "kd/seed-0": "the loss [/] is not finite (1:05 ago)",
        "figure": "missing",
    }
    for name, text in expected.items():
        row = next(line for line in lines if line.strip().startswith(name))
        assert text in row
    assert "on node7" in "".join(lines)


def test_the_counts_stand_on_one_line() -> None:
    assert status_text(STATES) == "5 tasks: 2 done, 1 running, 1 failed, 1 missing"
