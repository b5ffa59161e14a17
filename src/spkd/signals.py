"""When a process is to stop: signals, noted or held back, a deadline, and the death of its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask for it."""

LAST_WORDS = 30.0
"""Seconds that a process has to save where it stands once its parent is dead."""

REPEATED = 1.0
"""Seconds in which a second signal is taken for the first one."""

_collecting: list[list[int]] = []  # what the blocks of stop_signals that are open have received, the innermost last


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in a list instead of dying of it; only the main thread can.

    What comes within a second of it is the same one: schedulers signal all processes of a job, and a parent hands it
    on.
    Inside another such block, what that one has collected counts here too, and the next signal is left to it; what is
    collected here counts there afterwards.
    """
    received = list(_collecting[-1]) if _collecting else []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    earlier = {number: signal.getsignal(number) for number in STOP}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    noted: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not noted:
            received.append(number)
            noted.append(time.monotonic())
        elif time.monotonic() - noted[0] > REPEATED:
            restore()
            signal.raise_signal(number)

    for number in earlier:
        signal.signal(number, note)
    _collecting.append(received)
    try:
        yield received
    finally:
        _collecting.pop()
        restore()
        if _collecting and not _collecting[-1]:
            _collecting[-1].extend(received)


@contextlib.contextmanager
def signals_blocked(*, spawning: bool) -> Iterator[None]:
    """Hold back signals to stop: here until the end of the block, in a process started in it until it unblocks them.

    ``spawning`` tells whether such processes are spawned: what then starts before the first of them would unblock
    the signals in some versions of Python.
    """
    if spawning:
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_past(deadline: float | None) -> bool:
    """Return whether a deadline has come, as of ``time.time()``; None never does."""
    return deadline is not None and time.time() >= deadline


def end_with_parent() -> None:
    """End this process when its parent has died without a word; a run under way saves a checkpoint first."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_WORDS)
        os._exit(1)
