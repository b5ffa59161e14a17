"""Attention transfer as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from spkd.functional import attention_distance, relative_attention_map
from spkd.losses.base import DistillationLoss, tapped
from spkd.taps import Activations, TapPair


class AttentionTransferLoss(DistillationLoss):
    """Attention transfer of one pair of layers, ``mean((m_S / ||m_S|| - m_T / ||m_T||)²)``; usual weight: β = 1000.

    ``m`` is an image's map, the sum over the channels of the squared features, and the mean is over images and
    positions (Zagoruyko & Komodakis 2017, as in the authors' code): :func:`spkd.functional.attention_transfer_loss` in
    two halves. Four-dimensional output is read as ``(b, c, h, w)``, unless its dimensions 1 and 2 are equal and differ
    from dimension 3: that is read as the channels-last ``(b, h, w, c)`` of Swin-like networks. So a map with as many
    channels as rows and another number of columns is misread, and so is one with the channels last that is not square;
    tap a layer that puts it out otherwise. Three-dimensional output is tokens ``(b, n, c)``.

    Args:
        pair: the student's layer and the teacher's.

    Raises:
        InputError: in :meth:`remember` and :meth:`forward`, when a layer gives vectors or the maps cannot be
            brought to one size.
    """

    mean_over_images = True
    reads_teacher_logits = False

    def __init__(self, pair: TapPair) -> None:
        super().__init__()
        self.pairs = (pair,)

    @torch.no_grad()
    def remember(self, teacher: Activations) -> Tensor:
        """Return the teacher's attention maps: ``(b, h, w)`` or ``(b, n)``, float32 or float64.

        Each image's map is divided by its largest value. The loss does not depend on that, and values
        between 0 and 1 survive being stored in float16.
        """
        return relative_attention_map(_channels_first(tapped(teacher, self.pairs[0].teacher)))

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        """Return the mean squared difference of the unit-length maps; ``remembered`` in any float dtype."""
        student_features = _channels_first(tapped(student, self.pairs[0].student))
        return attention_distance(relative_attention_map(student_features), remembered)


def _channels_first(features: Tensor) -> Tensor:
    is_channels_last = features.dim() == 4 and features.shape[1] == features.shape[2] != features.shape[3]
    return features.permute(0, 3, 1, 2) if is_channels_last else features
