"""One training step, WRN-40-2 to WRN-16-1: the plain reference, ours, and the student alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.reference import PlainStep
from benchmarks.timing import interleaved
from spkd.distiller import Distiller
from spkd.losses.methods import build_objective
from spkd.losses.objective import Objective
from spkd.losses.weights import LossWeights
from spkd.models.classifier import Classifier, ModelInfo, Normalisation
from spkd.models.inference import inference_form
from spkd.models.wrn import WideResNet
from spkd.taps import TapPair


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of each kind of step, the ratios to the reference, and how far the losses lie apart."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, rounds = (4, 1) if smoke else (128, 15)
    torch.manual_seed(0)
    teacher, student = WideResNet(10 if smoke else 40, 2).to(device), WideResNet(10 if smoke else 16, 1).to(device)
    images, targets = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    info = ModelInfo("wrn", tuple("0123456789"), 3, 32, Normalisation((0.0,) * 3, (1.0,) * 3))
    form = inference_form(Classifier(teacher, info).to(device).eval(), ("group3",), images[:16])
    cheap, note = form.network, form.note
    pairs = [TapPair("group3", "group3")]
    distilled = Distiller(copy.deepcopy(student), cheap, build_objective("sp", pairs, LossWeights())).train()
    alone = Distiller(copy.deepcopy(student), None, Objective()).train()
    plain = PlainStep(student, teacher, "group3", 3000.0)
    first = (float(plain(images, targets)), float(_step(distilled)(images, targets)))
    functions: dict[str, Callable[[], object]] = {
        "plain eager reference": lambda: plain(images, targets),
        "spkd": _bound(_step(distilled), images, targets),
        "student alone": _bound(_step(alone), images, targets),
    }
    timings = interleaved(functions, rounds=rounds)
    reference = timings["plain eager reference"].median
    return {
        "what": f"one step, batch {batch}, float32, {device.type}",
        "teacher": note,
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "reference_over": {name: reference / timing.median for name, timing in timings.items()},
        "relative_difference_of_the_first_loss": abs(first[1] - first[0]) / abs(first[0]),
    }


def _step(distiller: Distiller) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = distiller(images, targets).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.detach()

    return step


def _bound(
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], images: torch.Tensor, targets: torch.Tensor
) -> Callable[[], object]:
    return lambda: step(images, targets)
