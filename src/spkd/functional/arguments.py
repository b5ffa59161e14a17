"""Checks of arguments that the losses share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spkd.errors import InputError


def matched(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the (student, teacher) pairs of one tensor each or of two sequences of equal length.

    Raises:
        InputError: when the sequences are empty, their lengths differ, or they hold something else.
    """
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if strange := [one for one in (*students, *teachers) if not isinstance(one, Tensor)]:
        raise InputError(
            f"expected the features of a layer, or a list of such, got a {type(strange[0]).__name__} in it"
        )
    if len(students) != len(teachers):
        raise InputError(
            f"student and teacher must give as many layers as each other, got {len(students)} and "
            f"{len(teachers)}; name one teacher layer for each student layer"
        )
    if not students:
        raise InputError("student and teacher hold no layer; give at least one pair of features")
    return list(zip(students, teachers, strict=True))


def check_not_empty(name: str, values: Tensor) -> None:
    """Raise InputError when ``values`` has no batch dimension or no element."""
    if values.dim() == 0 or values.numel() == 0:
        raise InputError(
            f"{name} must have shape (batch, ...) with at least one element, got {tuple(values.shape)}; "
            "give the output of a layer for at least one image"
        )


def check_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise InputError when the first dimensions differ."""
    if student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"student and teacher must see the same batch, got {student.shape[0]} and {teacher.shape[0]} "
            "images; pass the same images to both networks"
        )


def check_not_exchanged(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> None:
    """Raise InputError when gradients are on and some of the teacher's tensors require one, but none of the student's.

    The teacher's are constants in every loss, so that there would be no gradient at all.
    """
    if not torch.is_grad_enabled() or not _any_requires_grad(teacher) or _any_requires_grad(student):
        return
    # Within torch.func.vmap a tensor does not tell.
    if not torch._C._are_functorch_transforms_active():
        raise InputError(
            "student and teacher look exchanged: the teacher's tensors require a gradient and the student's do not, so "
            "that nothing would be learnt; give the student's first, or to measure only, detach() both"
        )


def _any_requires_grad(tensors: Tensor | Sequence[Tensor]) -> bool:
    return any(one.requires_grad for one in ([tensors] if isinstance(tensors, Tensor) else tensors))
