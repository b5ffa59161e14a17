"""A student's training step alone, in float32 and in bf16-mixed: plain, and in the form in which it is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import interleaved
from spkd.models.depthwise import depthwise_in_float32
from spkd.models.wrn import WideResNet
from spkd.training.devices import make_fabric
from spkd.training.options import Runtime

CLASSES = 10


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of a step."""
    device = make_fabric(Runtime()).device
    return {name: _measured(*case, device, smoke=smoke) for name, case in _cases(smoke=smoke).items()}


def _cases(*, smoke: bool) -> dict[str, tuple[nn.Module, int, int]]:
    """Return networks with a batch and an image size."""
    if smoke:
        return {"MobileNet-V3-S": (timm.create_model("mobilenetv3_small_050", num_classes=CLASSES), 4, 32)}
    return {
        "WRN-16-1": (WideResNet(16, 1), 128, 32),
        "ResNet-18": (torchvision.models.resnet18(num_classes=CLASSES), 16, 224),
        "RegNetY-800MF": (timm.create_model("regnety_008", num_classes=CLASSES), 16, 224),
        "MobileNet-V2, small images": (timm.create_model("mobilenetv2_100", num_classes=CLASSES), 64, 32),
        "MobileNet-V2": (timm.create_model("mobilenetv2_100", num_classes=CLASSES), 16, 224),
        "MobileNet-V3-S": (timm.create_model("mobilenetv3_small_100", num_classes=CLASSES), 16, 224),
        "MobileNet-V3-L": (timm.create_model("mobilenetv3_large_100", num_classes=CLASSES), 16, 224),
        "EfficientNet-B0": (timm.create_model("efficientnet_b0", num_classes=CLASSES), 16, 224),
        "ConvNeXt-Atto": (timm.create_model("convnext_atto", num_classes=CLASSES), 16, 224),
    }


def _measured(network: nn.Module, batch: int, size: int, device: torch.device, *, smoke: bool) -> dict[str, Any]:
    functions = {
        "plain float32": _step(network, batch, size, device, channels_last=False),
        "float32": _step(network, batch, size, device),
        "bf16-mixed, depthwise in bfloat16": _step(network, batch, size, device, mixed=True),
        "bf16-mixed": _step(network, batch, size, device, mixed=True, depthwise_exact=True),
    }
    timings = interleaved(functions, rounds=1 if smoke else 7, warmup=1 if smoke else 2)
    return {
        "what": f"training step alone, {batch} images of {size} × {size}, {device.type}",
        "seconds": {name: vars(timing) for name, timing in timings.items()},
    }


def _step(
    network: nn.Module,
    batch: int,
    size: int,
    device: torch.device,
    *,
    channels_last: bool = True,
    mixed: bool = False,
    depthwise_exact: bool = False,
) -> Callable[[], None]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student = copy.deepcopy(network).to(device).to(memory_format=layout)
    if depthwise_exact:
        depthwise_in_float32(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    targets = torch.randint(CLASSES, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = cross_entropy(student(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
