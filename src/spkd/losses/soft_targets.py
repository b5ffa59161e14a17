"""Knowledge distillation with softened class scores, as a module."""

from __future__ import annotations

from torch import Tensor

from spkd.functional import soft_target_loss
from spkd.functional.soft_targets import check_temperature
from spkd.losses.base import DistillationLoss
from spkd.taps import Activations


class SoftTargetLoss(DistillationLoss):
    """Soft targets, ``T² / b · sum_i KL(softmax(z_T,i / T) || softmax(z_S,i / T))`` of the logits, in nats.

    Source: Hinton et al. 2015; :func:`spkd.functional.soft_target_loss` in two halves. The usual weight is
    α = 0.9, with (1 - α) for the cross-entropy.

    Args:
        temperature: T, finite and above zero.

    Raises:
        InputError: for any other temperature; in :meth:`forward`, when the class counts differ.
    """

    mean_over_images = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def remember(self, teacher: Activations) -> Tensor:
        """Return the teacher's logits as they are: ``(b, k)``, so that any temperature can be used later."""
        return teacher.logits.detach()

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        """Return the scalar of the student's logits ``(b, k)`` and the ``remembered`` ones, in any float dtype."""
        return soft_target_loss(student.logits, remembered, self.temperature)
