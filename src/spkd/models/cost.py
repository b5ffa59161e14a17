"""What a network costs: parameters, multiply-adds, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spkd.modes import evaluating

_WARM_UP_RUNS = 5


def parameter_count(model: nn.Module) -> int:
    """Return the number of scalar parameters, frozen ones too, a shared one counted once.

    Buffers (running statistics of a batch norm, the normalisation of the images) are not parameters.

    >>> parameter_count(nn.Conv2d(3, 8, kernel_size=3))
    224
    """
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Return the multiply-adds of one forward pass on one image, in eval mode.

    Counted are convolutions, matrix products and attention, as published figures do; additions,
    activations, pooling and normalisation are not. The model is left as it was.

    Args:
        model: takes images (1, c, h, w).
        image_shape: (c, h, w).

    >>> multiply_adds(nn.Conv2d(3, 8, kernel_size=3, padding=1), (3, 32, 32)) == 3 * 3 * 3 * 8 * 32 * 32
    True
    """
    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros((1, *image_shape), dtype=parameter.dtype, device=parameter.device)
    counter = FlopCounterMode(display=False)
    # The counter sees no products in the CPU's fused attention kernels, so attention runs unfused.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def latency_ms(model: Callable[[Tensor], object], images: Tensor, repeats: int = 50) -> float:
    """Return the median time in milliseconds of one call ``model(images)`` on the CPU.

    A module is in eval mode meanwhile and gets its modes back. Calls run in inference mode with PyTorch's
    current number of threads, after a few that are not timed. The median passes over the calls that
    another process disturbed.

    Args:
        model: a module, or any function of images; it and the images are on the CPU.
        images: one batch (b, c, h, w); the time is that of the batch.
        repeats: number of timed calls, 1 or more.
    """
    times = []
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext(), torch.inference_mode():
        for _ in range(_WARM_UP_RUNS):
            model(images)
        for _ in range(repeats):
            start = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(times)
