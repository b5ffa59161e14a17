"""Networks come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spkd.modes import evaluating, keeping_buffers


class Overridden(nn.Module):
    """Does something of its own when its mode changes, as networks that fuse their branches do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Dropout()
        self.fused = False

    def train(self, mode: bool = True) -> Overridden:
        super().train(mode)
        self.fused = not mode
        return self


def test_mixed_modes_come_back_one_by_one() -> None:
    first = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval(), nn.Sequential(nn.Dropout()).eval())
    first[2][0].train()
    second = nn.Dropout().eval()
    with evaluating(first, None, second):
        assert not any(module.training for module in [*first.modules(), second])
    assert [module.training for module in first.modules()] == [True, True, False, False, True]
    assert not second.training


def test_modes_come_back_after_an_error() -> None:
    model = nn.Dropout()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training


def test_a_train_method_of_the_models_own_is_called_both_ways() -> None:
    model = Overridden()
    with evaluating(model):
        assert model.fused
    assert not model.fused


def test_buffers_that_are_not_there_yet_are_passed_over() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with keeping_buffers(network):
        network(torch.rand(2, 3, 8, 8))
    assert network[1].running_mean.shape == (4,)
