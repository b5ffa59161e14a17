"""Depthwise convolutions under autocast on a processor: in float32, since their kernels for bfloat16 are slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def depthwise_in_float32(network: nn.Module) -> int:
    """Have a network's depthwise convolutions computed in float32 under autocast, and return how many there are.

    On a processor their gradients take several times as long in bfloat16 as in float32 (docs/performance.md), so that a
    MobileNet would train more slowly in mixed precision than without. The input, which autocast has rounded, is
    multiplied in float32, and the result is rounded once, to autocast's type. Without autocast, on other devices, and
    of other weights than float32 nothing changes. Module paths, weights and hooks stay as they are.

    Args:
        network: changed in place. Convolutions of a class of one's own are left alone.

    >>> network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    >>> depthwise_in_float32(network)
    1
    """
    found = [one for one in network.modules() if type(one) is nn.Conv2d and 1 < one.groups == one.in_channels]
    for one in found:
        one.__class__ = _DepthwiseConv2d
    return len(found)


class _DepthwiseConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu") and self.weight.dtype == torch.float32
        if input.device.type != "cpu" or not lowered:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            output = super().forward(input.float())
        return output.to(torch.get_autocast_dtype("cpu"))
