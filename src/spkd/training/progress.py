"""What a person sees while a network trains: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from spkd.errors import printable
from spkd.machine import is_follower

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines at the least."""


class Display:
    """Where a run reports; as it is, nowhere."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, line: str) -> None:
        """Show one line of text."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """Start a run of ``steps`` training steps, ``done`` of which are behind it."""

    def update(self, done: int, text: str, left: float | None = None) -> bool:
        """Show that ``done`` steps are done, with the numbers of the moment in words; return whether it was shown.

        ``left`` is the time that the rest will take in seconds, where the caller knows better than that one step
        takes as long as another.
        """
        return True


class Lines(Display):
    """Plain lines for logs and pipes: at most one every :data:`PLAIN_INTERVAL` seconds, and the last.

    Args:
        brief: whether nothing is shown of what takes less time than that, and how many steps are done of what takes
            more; otherwise the text that comes with each step tells that.
    """

    def __init__(self, *, brief: bool = False) -> None:
        self._brief = brief
        self._title, self._steps, self._first = "", 0, 0
        self._begun = self._shown = 0.0

    def say(self, line: str) -> None:
        """Print one line on stderr."""
        try:
            print(printable(line), file=sys.stderr, flush=True)
        except BrokenPipeError:  # nobody reads any more, and the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        except OSError:  # a log on a full disk, which may have room again for the next line
            pass

    def begin(self, title: str, steps: int, done: int) -> None:
        """Note the start, for the time left."""
        self._title, self._steps, self._first = title, steps, done
        self._begun = self._shown = time.monotonic()

    def update(self, done: int, text: str, left: float | None = None) -> bool:
        """Print a line when it is time, or when the run is through."""
        now = time.monotonic()
        is_last = done >= self._steps and not (self._brief and self._shown == self._begun)
        if now - self._shown < PLAIN_INTERVAL and not is_last:
            return False
        self._shown = now
        if left is None:
            left = (now - self._begun) / max(1, done - self._first) * (self._steps - done)
        count = f"{done:,} of {self._steps:,}, " if self._brief else ""
        self.say(f"{self._title}: {count}{text}, {duration_text(left)} left")
        return True


class _TimeLeft(TimeRemainingColumn):
    """The time until the end that the task names, or else as rich estimates it from the steps."""

    def render(self, task: RichTask) -> Text:
        end = task.fields["end"]
        if end is None or task.finished:
            return super().render(task)
        return Text(duration_text(max(0.0, end - task.get_time())), style="progress.remaining")


class Bar(Display):
    """A progress bar on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        # Of what is too long for a narrow terminal the numbers' end is cut, and neither the count nor the time left.
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeLeft(compact=True, table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[text]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console or Console(stderr=True),
            expand=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._progress.console.print(printable(line), markup=False, highlight=False)

    def begin(self, title: str, steps: int, done: int) -> None:
        """Add a bar."""
        self._task = self._progress.add_task(printable(title), total=steps, completed=done, text="", end=None)

    def update(self, done: int, text: str, left: float | None = None) -> bool:
        """Move the bar."""
        if self._task is not None:
            end = None if left is None else self._progress.get_time() + left
            self._progress.update(self._task, completed=done, text=printable(text), end=end)
        return self._task is not None


def display(*, brief: bool = False) -> Display:
    """Return a bar where stderr is a terminal, plain lines where it is not, and nothing for a follower's run.

    ``brief`` is of :class:`Lines`.
    """
    if is_follower():
        return Display()
    return Bar() if sys.stderr.isatty() else Lines(brief=brief)


def duration_text(value: float) -> str:
    """Return seconds as people read them.

    >>> duration_text(59.6), duration_text(3661)
    ('1:00', '1:01:01')
    """
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
