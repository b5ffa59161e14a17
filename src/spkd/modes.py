"""Look at a network without changing it, and make one whatever the defaults are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Put models into eval mode; afterwards every submodule gets its own mode back, error or not.

    ``model.train()`` would not do to restore them: it also wakes a batch norm that was frozen on purpose.
    None among the models is passed over.

    >>> model = nn.Sequential(nn.BatchNorm1d(3).eval())
    >>> with evaluating(model):
    ...     print(model.training, model[0].training)
    False False
    >>> print(model.training, model[0].training)
    True False
    """
    given = [model for model in models if model is not None]
    modes = [(module, module.training) for model in given for module in model.modules()]
    try:
        for model in given:
            model.eval()
        yield
    finally:
        # First through train(), which a model may have overridden; then each flag as it was.
        for module, training in modes:
            if module in given:
                module.train(training)
        for module, training in modes:
            module.training = training


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make tensors on the CPU and of float32 where nothing else is said, whatever default device or dtype is set.

    >>> torch.set_default_dtype(torch.float64)
    >>> with usual_defaults():
    ...     nn.Linear(1, 1).weight.dtype
    torch.float32
    >>> torch.get_default_dtype()
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Give a model's buffers back as they were, the same tensors with the same content, error or not.

    One that a forward pass has made, or put in the place of one of another size, stays: it is a cache that has grown.

    >>> model = nn.BatchNorm1d(3)
    >>> with keeping_buffers(model):
    ...     model(torch.rand(4, 3)).shape, int(model.num_batches_tracked)
    (torch.Size([4, 3]), 1)
    >>> int(model.num_batches_tracked)
    0
    """
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in kept:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
                now = module._buffers.get(name)
                if now is not None and now.shape == buffer.shape:
                    module._buffers[name] = buffer
