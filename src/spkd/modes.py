"""Look at a network without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
