"""Depthwise convolutions under autocast: the exact convolution of the rounded input, rounded once."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from spkd.models.depthwise import depthwise_in_float32


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 5, stride=2, padding=2, groups=8),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.Conv2d(16, 4, 1),
        nn.Conv2d(1, 2, 1),
    )


def test_those_of_one_channel_a_group_are_taken_and_keep_their_place() -> None:
    original = network()
    changed = copy.deepcopy(original)
    assert depthwise_in_float32(changed) == 1
    assert [name for name, _ in changed.named_modules()] == [name for name, _ in original.named_modules()]
    assert changed.state_dict().keys() == original.state_dict().keys()
    assert isinstance(changed[1], nn.Conv2d)
    assert depthwise_in_float32(copy.deepcopy(changed)) == 0


def test_a_class_of_one_s_own_is_left_alone() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    own = Own(4, 4, 1, groups=4)
    assert depthwise_in_float32(own) == 0
    assert type(own) is Own


def test_without_autocast_nothing_changes() -> None:
    for dtype in (torch.float32, torch.float64):
        original = network()[1].to(dtype)
        changed = copy.deepcopy(original)
        depthwise_in_float32(changed)
        images = torch.randn(2, 8, 9, 9, dtype=dtype)
        assert torch.equal(changed(images), original(images))


def test_float64_which_autocast_leaves_alone_stays_exact() -> None:
    original = network()[1].double()
    changed = copy.deepcopy(original)
    depthwise_in_float32(changed)
    images = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(changed(images), original(images))


def test_under_autocast_values_and_gradients_are_those_of_float64_on_the_rounded_input() -> None:
    layer = network()[1]
    depthwise_in_float32(layer)
    images = torch.randn(2, 8, 9, 9).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.dtype == torch.bfloat16
    downstream = torch.randn(output.shape).bfloat16()
    output.backward(downstream)

    exact_images = images.detach().double().requires_grad_()
    weight, bias = (one.detach().double().requires_grad_() for one in (layer.weight, layer.bias))
    exact = conv2d(exact_images, weight, bias, stride=2, padding=2, groups=8)
    exact.backward(downstream.double())
    half_a_step = 2.0**-8  # bfloat16 keeps eight bits
    torch.testing.assert_close(output.double(), exact, rtol=1.01 * half_a_step, atol=1e-6)
    torch.testing.assert_close(images.grad.double(), exact_images.grad, rtol=1.01 * half_a_step, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad.double(), bias.grad, rtol=1e-5, atol=1e-5)


def test_compiled_it_says_the_same() -> None:
    layer = network()[1]
    depthwise_in_float32(layer)
    images = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(images), layer(images))
