"""The teacher's forward pass: as it is, folded in one pass, and as it is run, for networks of several kinds."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.timing import interleaved
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.inference import InferenceForm, inference_form
from spkd.models.wrn import WideResNet
from spkd.taps import Taps
from spkd.training.devices import make_fabric
from spkd.training.options import Runtime


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of a batch, and how many images the cheaper forms take at a time."""
    device = make_fabric(Runtime()).device
    return {name: _measured(*case, device, smoke=smoke) for name, case in _cases(smoke=smoke).items()}


def _cases(*, smoke: bool) -> dict[str, tuple[nn.Module, int, int]]:
    """Return networks with a batch and an image size."""
    if smoke:
        return {"WRN-10-1": (WideResNet(10, 1), 4, 8)}
    return {
        "WRN-28-2": (WideResNet(28, 2), 64, 8),
        "WRN-40-2": (WideResNet(40, 2), 128, 32),
        "WRN-16-8": (WideResNet(16, 8), 64, 32),
        "ResNet-18": (torchvision.models.resnet18(), 32, 224),
        "ResNet-50": (torchvision.models.resnet50(), 32, 224),
        "MobileNet-V2": (torchvision.models.mobilenet_v2(), 32, 224),
        "EfficientNet-B0": (timm.create_model("efficientnet_b0"), 32, 224),
        "ViT-S/16": (timm.create_model("vit_small_patch16_224"), 32, 224),
    }


def _measured(network: nn.Module, batch: int, size: int, device: torch.device, *, smoke: bool) -> dict[str, Any]:
    info = ModelInfo("own", tuple("0123456789"), 3, size, Normalisation((0.0,) * 3, (1.0,) * 3))
    original = Classifier(network, info).to(device).eval()
    images = torch.rand(batch, 3, size, size, device=device)
    short, full = (inference_form(original, (), images[:4], precision=one) for one in ("bf16-true", "32-true"))
    timings = interleaved(
        {
            "plain": lambda: _run(original, None, images),
            "float32, one pass": lambda: _run(full.network, None, images),
            "float32": lambda: _run(full.network, full, images),
            "bfloat16, one pass": lambda: _run(short.network, None, images),
            "bfloat16": lambda: _run(short.network, short, images),
        },
        rounds=1 if smoke else 5,
        warmup=1,
    )
    return {
        "what": f"forward pass of {batch} images of {size} × {size}, {device.type}",
        "images_at_a_time": {"float32": full.micro_batch_size, "bfloat16": short.micro_batch_size},
        "seconds": {name: vars(timing) for name, timing in timings.items()},
    }


@torch.no_grad()
def _run(network: nn.Module, form: InferenceForm | None, images: Tensor) -> None:
    with Taps(network, (), micro_batch_size=None if form is None else form.micro_batch_size) as taps:
        taps(images)
