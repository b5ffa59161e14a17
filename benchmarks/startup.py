"""How long each command takes to show its help, as a whole process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.timing import interleaved
from spkd.cli.main import COMMANDS


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of ``spkd --help`` and of each command's help, beside those of an empty Python process."""
    functions = {"python -c pass": _process("-c", "pass"), "spkd --help": _process("-m", "spkd", "--help")}
    functions |= {f"spkd {name} --help": _process("-m", "spkd", name, "--help") for name in COMMANDS}
    timings = interleaved(functions, rounds=1 if smoke else 5, warmup=0 if smoke else 1)
    return {"what": "start-up", "seconds": {name: vars(timing) for name, timing in timings.items()}}


def _process(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
