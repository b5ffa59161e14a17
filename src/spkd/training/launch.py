"""Several processes for one run, each with a part of every batch: started, watched and ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from spkd.errors import PEER_LOST, InputError
from spkd.machine import usable_cpus
from spkd.signals import end_with_parent
from spkd.training.environment import environment_of_children

MOST_PROCESSES = 8
"""Processes that may be started whatever the number of cores: as many as there are GPUs in a usual machine."""
GRACE = 10.0
"""Seconds that the others have to end by themselves once one process has ended with an error."""


def launch(main: Callable[[Sequence[str]], int], arguments: Sequence[str], processes: int, to_go_on: str) -> int:
    """Call ``main(arguments)`` in so many processes, as ``torchrun`` would, and return the exit code.

    Each has its rank in the environment. The first one speaks; what another one says is shown where it fails first.
    SIGINT and SIGTERM are handed on once, upon which the processes agree on a step to stop after; a second one ends
    them. When one dies, the others, which wait for it, are ended too, and ``to_go_on`` says how nothing is lost.

    Raises:
        InputError: for more processes than the machine can be meant to run.
        KeyboardInterrupt: when a signal came before there was anything to save, or a second one.
    """
    if processes > max(usable_cpus(), MOST_PROCESSES):
        raise InputError(f"--devices {processes}: this machine has {usable_cpus()} processor cores; give fewer")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, environment_of_children(_variables(processes)):
        said = [Path(folder) / str(rank) for rank in range(processes)]
        workers: list[BaseProcess] = [
            context.Process(target=_work, args=(main, list(arguments), rank, said[rank])) for rank in range(processes)
        ]
        with _signals_to(workers) as received:
            for worker in workers:
                worker.start()
            first = _watch(workers)
        codes = [worker.exitcode or 0 for worker in workers]
        if first is None:
            return codes[0]
        # Before it could note the first signal and save, or by the second one.
        if codes[first] in [-signal.SIGTERM, -signal.SIGKILL][: len(received)]:
            raise KeyboardInterrupt
        if codes[first] < 0:
            name = signal.Signals(-codes[first]).name
            line = f"process {first + 1} of {processes} died ({name}), so the run has ended; {to_go_on}"
            print(f"spkd: error: {line}", file=sys.stderr)
            return 1
        # Where all have failed for one reason, the first has said so.
        if codes[0] != codes[first] and said[first].exists():
            for line in said[first].read_text().strip().splitlines()[-1:]:
                print(line, file=sys.stderr)
        return 1 if codes[first] == PEER_LOST else codes[first]


def _watch(workers: Sequence[BaseProcess]) -> int | None:
    """Wait for all; return which failed first, after ending those that wait for it, or None."""
    first, failed_at = None, 0.0
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.1)
        if first is None:
            first, failed_at = _failed(workers), time.monotonic()
        killed = first is not None and (workers[first].exitcode or 0) < 0
        if first is not None and (killed or time.monotonic() - failed_at > GRACE):
            for worker in workers:
                worker.kill()
    return _failed(workers) if first is None else first


def _failed(workers: Sequence[BaseProcess]) -> int | None:
    """Return which process has failed, or None: of several one that died, then one with an error of its own, from
    which that of those that wait for it follows.
    """
    codes = {rank: worker.exitcode for rank, worker in enumerate(workers) if worker.exitcode}
    return min(codes, key=lambda rank: (codes[rank] > 0, codes[rank] == PEER_LOST), default=None)


def _work(main: Callable[[Sequence[str]], int], arguments: list[str], rank: int, said: Path) -> None:
    """Be one of the processes."""
    os.setsid()  # signals of the terminal come through the parent, once
    end_with_parent()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if rank == 0:
        sys.exit(main(arguments))
    with said.open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        code = main(arguments)
    sys.exit(code)


def _variables(processes: int) -> dict[str, str]:
    """Return what torchrun sets for all of the processes that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # More threads than cores wait for each other, spinning.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cpus() // processes)))
    return {
        "TORCHELASTIC_RUN_ID": "spkd",
        "MASTER_ADDR": "127.0.0.1",
        # Of a Mac's own name the address is often not found.
        **({"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo0")} if sys.platform == "darwin" else {}),
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": threads,
    }


@contextlib.contextmanager
def _signals_to(workers: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Hand the first SIGINT or SIGTERM on; kill at a second one; give the list of those received."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL if received else signal.SIGTERM)
        received.append(number)

    earlier = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
