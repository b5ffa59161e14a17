"""A recipe's optimizer, and what it remembers when it goes on elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from spkd.training.recipe import Recipe


def make_optimizer(parameters: Sequence[nn.Parameter], recipe: Recipe) -> Optimizer:
    """Return the optimizer of the recipe, fused into one step for all parameters where that can be."""
    # A fused optimizer undoes the scaling of float16 gradients itself, too late for them to be clipped before; on
    # Apple's GPUs, in many versions, not at all.
    of_apple = any(parameter.device.type == "mps" for parameter in parameters)
    fused = not (recipe.precision == "16-mixed" and (recipe.clip_norm or of_apple))
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    optimizer = torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
    if recipe.momentum:
        # A fused first step whose float16 gradients overflow would leave whatever lay in the memory, and one in which
        # not all weights have a gradient would fail at those that get theirs later.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lay_as_weights(optimizer: Optimizer) -> None:
    """Lay what is remembered of each weight in memory as the weight lies, which may be otherwise on another device.

    Fused steps take both for alike: the values of one would be those of another.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if value.dim() > 1:
                kept[name] = torch.empty_like(parameter).copy_(value)
