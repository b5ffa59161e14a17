"""Costs held against formulas and against the figures that torchvision publishes with its weights."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from spkd.models import cost
from spkd.models.cost import latency_ms, multiply_adds, parameter_count


def test_parameters_are_counted_once_and_buffers_not() -> None:
    shared = nn.Linear(5, 5)
    model = nn.Sequential(shared, nn.BatchNorm1d(5), shared)
    shared.weight.requires_grad_(False)
    assert parameter_count(model) == 5 * 5 + 5 + 2 * 5


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_16", "swin_t"])
def test_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert multiply_adds(model, (3, 224, 224)) / 1e9 == pytest.approx(published["_ops"], abs=0.00051)
    assert parameter_count(model) == published["num_params"]


def test_multiply_adds_of_grouped_and_strided_convolutions_and_a_head() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, kernel_size=3, stride=2, padding=1, groups=4),  # 8 x 8 outputs of 8 channels
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    assert multiply_adds(model, (4, 16, 16)) == 8 * 8 * 8 * 9 * (4 // 4) + 512 * 10


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, num_heads=2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed


def test_multiply_adds_of_attention_on_the_cpu() -> None:
    tokens, width = 9, 16
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    assert multiply_adds(Attention(), (16, 3, 3)) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    multiply_adds(model, (1, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Clock:
    """A clock that only the timed calls move: five slow ones, then 1, 2, … ms, with one long disturbance."""

    def __init__(self) -> None:
        self.durations = iter([0.5] * 5 + [0.004, 0.001, 9.0, 0.003, 0.002])
        self.now = 100.0
        self.inference: list[bool] = []

    def __call__(self, images: Tensor) -> None:
        self.inference.append(torch.is_inference_mode_enabled())
        self.now += next(self.durations)


def test_latency_is_the_median_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(cost.time, "perf_counter", lambda: clock.now)
        latency = latency_ms(clock, torch.zeros(1, 1, 2, 2), repeats=5)
    assert latency == pytest.approx(3.0)
    assert clock.inference == [True] * 10


def test_latency_of_a_module_runs_in_eval_mode_and_gives_it_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    latency_ms(model, torch.ones(2, 1, 2, 2), repeats=2)
    assert model.training
    assert torch.equal(model[0].running_mean, torch.zeros(1))
