"""Time several functions in one process, in turn, so that the machine's drift meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a function over the counted rounds: median, and lower and upper quartile."""

    median: float
    low: float
    high: float


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2, calls: int = 1
) -> dict[str, Timing]:
    """Time every function once a round, ``calls`` calls in a row, and return the timings by name.

    ``warmup`` rounds are not counted. A GPU is waited for at the end of the calls, so that with several of them it has
    work to do while Python prepares the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            for _ in range(calls):
                function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                seconds[name].append((time.perf_counter() - begun) / calls)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: list[float]) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)
