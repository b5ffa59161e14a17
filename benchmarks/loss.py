"""The loss with its gradient alone, as the batch grows, against the textbook form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.reference import similarity_loss
from benchmarks.timing import interleaved
from spkd.functional import similarity_preserving_loss


def measure(*, smoke: bool) -> dict[str, Any]:
    """Return seconds of both forms by batch size, for 2,048 features."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (8,) if smoke else (64, 256, 1024, 4096)
    found: dict[int, Any] = {}
    for batch in sizes:
        student = torch.randn(batch, 2048, device=device, requires_grad=True)
        teacher = torch.randn(batch, 2048, device=device)
        functions = {
            "textbook": _with_gradient(similarity_loss, student, teacher),
            "spkd": _with_gradient(similarity_preserving_loss, student, teacher),
        }
        timings = interleaved(functions, rounds=1 if smoke else 9)
        found[batch] = {name: vars(timing) for name, timing in timings.items()}
        textbook = float(similarity_loss(student, teacher))
        difference = abs(float(similarity_preserving_loss(student, teacher)) - textbook) / textbook
        found[batch]["relative_difference"] = difference
    return {"what": f"loss and gradient, 2,048 features, {device}", "seconds_by_batch": found}


def _with_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], student: torch.Tensor, teacher: torch.Tensor
) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(student, teacher), student)
