"""How well the probability of a class tells its images from all others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spkd.training.evaluation import Evaluation

ROOM = 2 * 2**30
"""Bytes that the probabilities may take, of which none can be let go before the last is known."""


def has_room(images: int, classes: int) -> bool:
    """Return whether the probabilities that so many images have of so many classes are few enough to be ranked."""
    return 8 * images * classes <= ROOM


class Ranking:
    """The area under the ROC curve of each class against all others, from their probabilities.

    It is the probability that of two images, one of the class and one of another, the former is given the higher
    probability of the class; equal ones count as a half.

    Args:
        images: how many there will be.
        classes: how many there are.
    """

    def __init__(self, images: int, classes: int) -> None:
        # In float64, in which hardly any are equal that differ as logits.
        self._shares = torch.empty(classes, images, dtype=torch.float64)
        self._targets = torch.empty(images, dtype=torch.int64)
        self._done = 0

    def add(self, shares: Tensor, targets: Tensor) -> None:
        """Take the probabilities (b, k) and the targets (b,) of a batch."""
        places = slice(self._done, self._done + len(targets))
        self._shares[:, places] = shares.T
        self._targets[places] = targets.cpu()
        self._done += len(targets)

    def areas(self) -> list[float | None]:
        """Return the area of each class; None where all images are of it, or none is."""
        from sklearn.metrics import roc_auc_score

        counts = self._targets.bincount(minlength=len(self._shares)).tolist()
        return [
            float(roc_auc_score((self._targets == place).numpy(), self._shares[place].numpy()))
            if 0 < counts[place] < len(self._targets)
            else None
            for place in range(len(self._shares))
        ]

    def put_into(self, measured: Evaluation) -> Evaluation:
        """Return the same evaluation with the areas beside the classes' errors."""
        pairs = zip(measured.per_class, self.areas(), strict=True)
        return replace(measured, per_class=tuple(replace(one, area=area) for one, area in pairs))
