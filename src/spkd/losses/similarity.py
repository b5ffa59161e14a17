"""The similarity-preserving loss as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from spkd.functional import matrix_preserving_loss, similarity_matrix
from spkd.losses.base import DistillationLoss, tapped
from spkd.taps import Activations, TapPair


class SimilarityPreservingLoss(DistillationLoss):
    """The similarity-preserving loss of one pair of layers, ``||G_T - G_S||_F^2 / b^2``; paper's weight: γ = 3000.

    ``G`` are the rows of ``Q Q^T`` at unit L2 length, of features ``Q`` flattened to ``(b, -1)`` (Tung & Mori 2019,
    equations 1 to 4): :func:`spkd.functional.similarity_preserving_loss` in two halves. It needs no labels
    and no classes in common. Where several processes have divided a batch of b images, each computes the r rows of its
    own images, with the columns of all.

    Args:
        pair: the student's layer and the teacher's, of any shape ``(b, ...)``, not necessarily the same.

    Raises:
        InputError: in :meth:`remember` and :meth:`forward`, when a layer was not tapped or gives nothing, or the
            matrices are of batches of unlike size.
    """

    mean_over_images = True
    reads_teacher_logits = False

    def __init__(self, pair: TapPair) -> None:
        super().__init__()
        self.pairs = (pair,)

    @torch.no_grad()
    def remember(self, teacher: Activations) -> Tensor:
        """Return the teacher's similarity matrix G: ``(b, b)``, float32 or float64, entries in [-1, 1].

        Of a divided batch it is the rows of this process's images, ``(r, b)``.
        """
        features = tapped(teacher, self.pairs[0].teacher)
        return similarity_matrix(features, teacher.gather(features))

    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        """Return ``||G_T - G_S||_F^2 / b^2`` with ``remembered`` as G_T, in any floating-point dtype.

        A scalar, float32 (float64 of float64 features). Of a divided batch it is the mean over this process's rows,
        ``||G_T - G_S||_F^2 / (r b)``.
        """
        features = tapped(student, self.pairs[0].student)
        return matrix_preserving_loss(features, remembered, student.gather(features))
