"""Whether a device is quicker in bfloat16 than in float32."""

from __future__ import annotations

import math
import time
from functools import cache

import torch

GAIN = 1.2
"""How many times as quick a processor must multiply in bfloat16 for its rounding to be worth while. Those measured
multiply at about half of float32's rate or less, or at about twice its rate or more."""
ROUNDS = 6
"""Convolutions of each precision that are timed: the quickest counts, whatever else runs."""


def gains_from_bfloat16(device: torch.device) -> bool:
    """Return whether the device is quicker in bfloat16 than in float32.

    Of a GPU its generation tells. A processor is tried, once in a process: there are some that have instructions for
    bfloat16 and need twice as long with them (Intel's with AVX-512 where AMX is not to be had).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _gain_of_processor() >= GAIN


def is_slow_in_bfloat16(accelerator: str) -> bool:
    """Return whether what is computed on ``accelerator`` is computed where bfloat16 is no quicker than float32.

    Of Apple's devices that is not known, and taken not to be so.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return not gains_from_bfloat16(torch.device("cuda"))
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return False
    return not gains_from_bfloat16(torch.device("cpu"))


@cache
def _gain_of_processor() -> float:
    """Return how many times as quick a usual convolution is in bfloat16 as in float32."""
    images = torch.ones(16 * torch.get_num_threads(), 64, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3).to(memory_format=torch.channels_last)
    given = {kind: (images.to(kind), weight.to(kind)) for kind in (torch.float32, torch.bfloat16)}
    least = dict.fromkeys(given, math.inf)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for kind, (pixels, kernels) in given.items():
                begun = time.perf_counter()
                torch.conv2d(pixels, kernels, padding=1)
                least[kind] = min(least[kind], time.perf_counter() - begun)
    return least[torch.float32] / least[torch.bfloat16]
