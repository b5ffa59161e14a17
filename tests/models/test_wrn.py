from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.models.wrn import WideResNet


def counted_by_hand(depth: int, width: int, classes: int, in_channels: int = 3) -> int:
    """Convolutions, norms (two values a channel), shortcuts and head, added up layer by layer."""
    total, channels = in_channels * 16 * 9, 16
    for group in range(3):
        wide = 16 * width * 2**group
        for block in range((depth - 4) // 6):
            total += 2 * channels + channels * wide * 9 + 2 * wide + wide * wide * 9
            if channels != wide or (group > 0 and block == 0):
                total += channels * wide
            channels = wide
    return total + 2 * channels + channels * classes + classes


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(16, 1, 0.175), (40, 1, 0.564), (16, 2, 0.692), (40, 2, 2.244), (16, 8, 10.96)],
)
def test_has_the_paper_s_parameter_counts(depth: int, width: int, millions: float) -> None:
    count = sum(parameter.numel() for parameter in WideResNet(depth, width).parameters())
    assert count == counted_by_hand(depth, width, 10)
    digits = 2 if millions > 10 else 3
    assert round(count / 1e6, digits) == millions


def by_functions(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The network in eval mode written down with functions only, from its state dict."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]

    x = F.conv2d(images, state["stem.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"group{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = norm(x, f"{name}.norm1").clamp_min(0)
            y = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, f"{name}.norm2").clamp_min(0), state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.shortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(active, shortcut, stride=stride))
    return norm(x, "norm").clamp_min(0).mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("width", "channels", "size"), [(1, 1, 8), (2, 3, 32)])
def test_computes_what_the_formula_says(width: int, channels: int, size: int) -> None:
    torch.manual_seed(0)
    network = WideResNet(16, width, num_classes=7, in_channels=channels).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images = torch.rand(3, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = by_functions(network.state_dict(), images, blocks=2)
        torch.testing.assert_close(network.eval()(images), expected)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_groups_outputs_as_they_were(training: bool) -> None:
    network = WideResNet(10, 1, in_channels=1).train(training)
    outputs: dict[str, tuple[Tensor, Tensor, int]] = {}
    for name in ("group1", "group2", "group3"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update(
                {name: (output, output.detach().clone(), output._version)}
            )
        )
    network(torch.rand(2, 1, 8, 8))
    assert [outputs[name][0].shape[1:] for name in outputs] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    for output, copy, version in outputs.values():
        assert output._version == version
        assert torch.equal(output, copy)
        assert (output < 0).any()


def test_starts_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    network = WideResNet(16, 4)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert (network.fc.bias == 0).all()


def test_every_parameter_is_trained() -> None:
    network = WideResNet(10, 2, in_channels=1)
    network(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("depth", "hint"),
    [(18, "try 16 or 22"), (4, "try 10"), (9, "try 10"), (-2, "try 10"), (11, "try 10 or 16")],
)
def test_refuses_other_depths(depth: int, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        WideResNet(depth, 1)


def test_refuses_counts_below_one() -> None:
    with pytest.raises(InputError, match="width"):
        WideResNet(10, 0)
    with pytest.raises(InputError, match="num_classes"):
        WideResNet(10, 1, num_classes=0)
