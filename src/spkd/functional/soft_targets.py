"""Knowledge distillation with softened class scores.

Source: G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015
(arXiv 1503.02531).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from spkd.errors import InputError
from spkd.functional.arguments import check_not_empty, check_not_exchanged, check_same_batch
from spkd.functional.numerics import upcast


def check_temperature(temperature: float) -> None:
    """Raise InputError unless ``temperature`` is finite and above zero."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature must be a finite number above 0, got {temperature}; try 4")


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return the divergence of the softened class scores of student and teacher.

    .. math::
        L_{KD} = \frac{T^2}{b} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(z_{T,i} / T) \,\big\Vert\,
        \mathrm{softmax}(z_{S,i} / T)\bigr)

    in nats. The factor :math:`T^2` keeps the size of the gradient when T changes. The weight α of the total
    loss, ``α L_KD + (1 - α) CE``, is not applied here. Adding one number to all logits of an image changes
    nothing.

    Autocast is off inside and the logarithm of the softmax is taken in float32, because the difference of
    two nearly equal log-probabilities has no correct digits in half precision.

    Args:
        student_logits: shape ``(b, k)``.
        teacher_logits: shape ``(b, k)``. No gradient flows to it.
        temperature: T, above zero.

    Returns:
        A scalar, float32 (float64 where logits are float64), at least 0 up to rounding, which in float32 is about
        ``1e-7 T²`` (the gradient's does not grow with T); not finite when logits are not.

    Raises:
        InputError: when shapes are not ``(b, k)``, k is 1, batches or class counts differ, T is not above zero, or
            student and teacher look exchanged: gradients are on, and only the teacher's logits require one.

    >>> teacher = torch.tensor([[1.0, 0.0]])
    >>> soft_target_loss(teacher + 5, teacher)
    tensor(0.)
    >>> teacher = torch.tensor([[0.75, 0.25]]).log()
    >>> soft_target_loss(torch.zeros(1, 2), teacher, temperature=1.0)  # 0.75 ln 1.5 + 0.25 ln 0.5
    tensor(0.1308)
    """
    check_temperature(temperature)
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        check_not_empty(name, logits)
        if logits.dim() != 2:
            raise InputError(f"{name} must have shape (batch, classes), got {tuple(logits.shape)}; give class scores")
    check_same_batch(student_logits, teacher_logits)
    check_not_exchanged(student_logits, teacher_logits)
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise InputError(
            f"soft targets need the same classes in both networks, but the student has "
            f"{student_logits.shape[1]} and the teacher {teacher_logits.shape[1]}; use a method "
            "without kd, such as sp"
        )
    if student_logits.shape[1] == 1:
        raise InputError(
            "soft targets need two logits or more, as the softmax of one is always 1; give zeros as the other"
        )
    with torch.autocast(device_type=student_logits.device.type, enabled=False):
        student_log = F.log_softmax(upcast(student_logits) / temperature, dim=1)
        teacher_log = F.log_softmax(upcast(teacher_logits.detach()) / temperature, dim=1)
        per_class = teacher_log.exp() * (teacher_log - student_log)
        return temperature**2 * per_class.sum(dim=1).mean()
