"""The loss with its gradient alone, time and memory, against the textbook form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import FORMS, once_in_a_process
from benchmarks.timing import interleaved

# Images and features of each.
BY_BATCH = ((64, 2048), (256, 2048), (1024, 2048), (4096, 2048))
BY_WIDTH = ((256, 64), (256, 512), (256, 16384))
LARGE = (8192, 8192)


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return, by batch and width, seconds and peak memory of both forms and how far their values lie apart."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [_both(*size, device, rounds=1 if smoke else 9) for size in (((8, 16),) if smoke else BY_BATCH + BY_WIDTH)]
    if not smoke:
        found.append({"batch": LARGE[0], "width": LARGE[1], **_once(*LARGE)})
    return {
        "what": f"loss and gradient, float32, {device}",
        "memory": "bytes above the features, at the peak of a process of its own; the last size was timed there, once",
        "sizes": found,
    }


def _both(batch: int, width: int, device: str, rounds: int) -> dict[str, Any]:
    student = torch.randn(batch, width, device=device, requires_grad=True)
    teacher = torch.randn(batch, width, device=device)
    functions = {name: _with_gradient(form, student, teacher) for name, form in FORMS.items()}
    timings = interleaved(functions, rounds=rounds)
    textbook, ours = (float(form(student, teacher).detach()) for form in FORMS.values())
    return {
        "batch": batch,
        "width": width,
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "bytes": _once(batch, width)["bytes"],
        "relative_difference": abs(ours - textbook) / textbook,
    }


def _once(batch: int, width: int) -> dict[str, Any]:
    runs = {name: once_in_a_process(name, batch, width) for name in FORMS}
    return {
        "seconds": {name: run["seconds"] for name, run in runs.items()},
        "bytes": {name: run["bytes"] for name, run in runs.items()},
        "relative_difference": abs(runs["spkd"]["value"] - runs["textbook"]["value"]) / runs["textbook"]["value"],
    }


def _with_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], student: torch.Tensor, teacher: torch.Tensor
) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(student, teacher), student)
