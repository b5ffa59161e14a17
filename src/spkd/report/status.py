"""Where a study stands, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from spkd.report.grid import as_text
from spkd.studies.outcome import outcome_text
from spkd.studies.state import TaskState
from spkd.training.progress import duration_text

_STYLES = {"done": "green", "running": "yellow", "failed": "red", "stopped": "yellow", "missing": "dim"}


def status_table(states: Sequence[TaskState]) -> Table:
    """Return a rich table: one line for each task, with its error, why it failed, or how far it is."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("task", "what", "state", ""):
        table.add_column(heading, overflow="fold")
    for state in states:
        stands = Text(state.state, style=_STYLES[state.state])
        table.add_row(as_text(state.name), as_text(state.kind), stands, as_text(_detail(state)))
    return table


def status_text(states: Sequence[TaskState]) -> str:
    """Return how many tasks are in which state, on one line.

    >>> status_text([TaskState("a", "training", "done"), TaskState("b", "training", "failed")])
    '2 tasks: 1 done, 0 running, 1 failed, 0 stopped, 0 missing'
    """
    counts = [f"{sum(one.state == state for one in states)} {state}" for state in _STYLES]
    return f"{len(states)} tasks: {', '.join(counts)}"


def _detail(state: TaskState) -> str:
    ago = "" if state.since is None else duration_text(max(0.0, time.time() - state.since))
    done, total = state.epochs
    progress = f"{done} of {total} epochs" if total else ""
    if state.state == "running":
        return f"{progress}{', ' if progress else ''}for {ago} on {state.host}"
    if state.state == "stopped":
        return f"after {progress}"
    if state.state == "failed":
        return f"{state.reason} ({ago} ago)"
    return outcome_text(state.result)
