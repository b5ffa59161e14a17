"""The wide residual networks for small images, which neither torchvision nor timm has."""

from __future__ import annotations

import math

from torch import Tensor, nn

from spkd.errors import InputError


class WideResNet(nn.Module):
    """A wide residual network for small images (Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016).

    A 3x3 convolution to 16 channels, then three groups of ``n = (depth - 4) / 6`` pre-activation blocks
    with ``16 * width``, ``32 * width`` and ``64 * width`` channels, the second and third at half the
    resolution of the group before; batch norm, ReLU, global average pooling, a linear head. No dropout.

    Convolutions are drawn from a normal distribution of variance ``2 / (kernel area * output channels)``
    (He et al. 2015, fan-out), as in the authors' code; norms start at one and zero, the head's bias at zero.

    The groups are the submodules ``group1``, ``group2`` and ``group3``. No later layer writes into their
    outputs, so each can be tapped; the output of ``group3`` is the last one before the final batch norm.

    Args:
        depth: number of layers, ``6 n + 4`` with ``n >= 1``: 10, 16, 22, 28, 34, 40, ...
        width: factor on the channels of the three groups, at least 1.
        num_classes: number of logits.
        in_channels: channels of the images: 3 for colour, 1 for grey.

    Shapes:
        Images ``(b, in_channels, h, w)`` of any size (32x32 in the paper) to logits ``(b, num_classes)``.

    Raises:
        InputError: for a depth that is not ``6 n + 4``, or a count below one.

    >>> import torch
    >>> network = WideResNet(depth=16, width=1, num_classes=10)
    >>> network(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> sum(parameter.numel() for parameter in network.parameters())
    175066
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        _check(depth, width, num_classes, in_channels)
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.group1 = _group(16, 16 * width, blocks, stride=1)
        self.group2 = _group(16 * width, 32 * width, blocks, stride=2)
        self.group3 = _group(32 * width, 64 * width, blocks, stride=2)
        self.norm = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(b, num_classes)`` of images ``(b, in_channels, h, w)``."""
        features = self.group3(self.group2(self.group1(self.stem(images))))
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(features))).flatten(1))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, added to the input.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        # The in-place ReLUs write into the outputs of the norms before them, never into the block's input.
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            if in_channels != out_channels or stride != 1
            else None
        )

    def forward(self, features: Tensor) -> Tensor:
        activated = self.relu1(self.norm1(features))
        shortcut = features if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(activated))))
        return residual + shortcut


def _group(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [_Block(out_channels, out_channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(in_channels, out_channels, stride), *rest)


def _check(depth: int, width: int, num_classes: int, in_channels: int) -> None:
    if depth < 10 or (depth - 4) % 6:
        below = 4 + 6 * max(1, (depth - 4) // 6)
        valid = f"{below}" if depth < 10 else f"{below} or {below + 6}"
        raise InputError(f"depth: a wide residual network has 6n + 4 layers, got {depth}; try {valid}.")
    for name, value in (("width", width), ("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value}.")
