"""The distance of similarity matrices as one operation for autograd, with its gradient in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spkd.functional.numerics import unit_rows, upcast
from spkd.functional.similarity_blocks import (
    distance_and_gradients,
    matrix_rows,
    plain_distance,
    plain_matrix,
    row_scales,
)


def matrix(own: Tensor, batch: Tensor | None) -> Tensor:
    """Return the rows of G of the images ``own``; its gradient is found by ordinary operations.

    Args:
        own: ``(r, d)``, floating point.
        batch: ``(b, d)``, the images that the columns stand for; ``None`` for those of ``own``.

    Returns:
        ``(r, b)``, float32 or float64.
    """
    with torch.autocast(own.device.type, enabled=False):
        return _differentiable_matrix(own, batch) if _is_differentiated(own, batch) else plain_matrix(own, batch)


def distance(own: Tensor, batch: Tensor | None, teacher: Tensor, *, teacher_is_matrix: bool) -> Tensor:
    """Return the mean of the squared differences of the student's rows of G and the teacher's.

    The gradient is computed together with the value, by
    :func:`~spkd.functional.similarity_blocks.distance_and_gradients`, and kept in float32 or float64. A second
    derivative goes by ordinary operations and costs what those do.

    Args:
        own: the student's features ``(r, d)``, floating point.
        batch: those of the whole batch ``(b, d)``, or ``None`` where that is ``own``.
        teacher: its matrix ``(r, b)``, or its features ``(b, d')`` where ``batch`` is ``None``. No gradient
            flows to it.
        teacher_is_matrix: which of the two.
    """
    if _is_differentiated(own, batch):
        if not torch.compiler.is_compiling() and teacher.is_inference():  # which may not be kept for a backward pass
            teacher = teacher.clone()
        loss: Tensor = _Distance.apply(own, batch, teacher, teacher_is_matrix)
        return loss
    with torch.autocast(own.device.type, enabled=False):
        return plain_distance(own, batch, _teacher_rows(teacher, teacher_is_matrix))


class _Distance(torch.autograd.Function):
    """The distance; its gradients are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, batch: Tensor | None, teacher: Tensor, teacher_is_matrix: bool) -> Tensor:
        with torch.autocast(own.device.type, enabled=False):
            value, *gradients = distance_and_gradients(own, batch, _teacher_rows(teacher, teacher_is_matrix))
        ctx.teacher_is_matrix = teacher_is_matrix
        ctx.save_for_backward(own, batch, teacher, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        own, batch, teacher, own_gradient, batch_gradient = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = _differentiable_gradients(own, batch, teacher, ctx.teacher_is_matrix, upstream)
            return *gradients, None, None
        # Before the cast: what is too small for half precision may not be so after the loss's weight.
        own_gradient = (own_gradient * upstream).to(own.dtype)
        if batch is not None:
            batch_gradient = (batch_gradient * upstream).to(batch.dtype)
        return own_gradient, batch_gradient, None, None


def _is_differentiated(own: Tensor, batch: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (own.requires_grad or (batch is not None and batch.requires_grad))


def _teacher_rows(teacher: Tensor, teacher_is_matrix: bool) -> Callable[[slice], Tensor]:
    if not teacher_is_matrix:
        return matrix_rows(teacher)
    return lambda rows: upcast(teacher[rows])


def _differentiable_matrix(own: Tensor, batch: Tensor | None) -> Tensor:
    rows = upcast(own)
    columns = rows if batch is None else upcast(batch)
    scales = row_scales(columns)
    products = (rows / row_scales(rows)) @ (columns / scales).T
    return unit_rows(products * (scales / scales.amax()).T)


def _differentiable_gradients(
    own: Tensor, batch: Tensor | None, teacher: Tensor, teacher_is_matrix: bool, upstream: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients with a history of their own, for a second derivative."""
    with torch.autocast(own.device.type, enabled=False):
        teacher_matrix = upcast(teacher.detach()) if teacher_is_matrix else plain_matrix(teacher.detach(), None)

        def value(own: Tensor, batch: Tensor | None = None) -> Tensor:
            return (_differentiable_matrix(own, batch) - teacher_matrix).square().mean()

        sides = (own,) if batch is None else (own, batch)
        gradients: tuple[Tensor, ...] = torch.func.vjp(value, *sides)[1](upstream)
    return gradients[0], None if batch is None else gradients[1]
