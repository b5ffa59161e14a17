"""What a recipe puts in the place of the plain cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spkd.data.draws import times_of_classes
from spkd.data.images import ImageData
from spkd.training.recipe import Recipe


class WeighedCrossEntropy(nn.CrossEntropyLoss):
    """The cross-entropy of each image, ``w_y · CE``, times a weight of its label.

    With smoothed labels it weighs the whole of it. PyTorch's own weights weigh each class's share by that class's
    weight, so that a smoothed label of a common class would say rare ones above all. Of an image that is mixed it is
    the sum ``Σ_c t_c w_c CE_c`` over its labels; the share of one without a label adds nothing.

    Args:
        weights: of the classes, (k,).
        label_smoothing: share of a label that all classes get.
    """

    def __init__(self, weights: Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing=label_smoothing, reduction="none")
        self.register_buffer("of_labels", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a value for each image, 0 without a label.

        Args:
            logits: (b, k).
            targets: classes, int64 (b,), -100 without a label, or each class's share in a mixed image, (b, k).
        """
        if targets.is_floating_point():
            shares, likely = targets * self.of_labels, logits.log_softmax(1)  # type: ignore[operator]
            smoothed = (1 - self.label_smoothing) * likely + self.label_smoothing * likely.mean(1, keepdim=True)
            return -(shares * smoothed).sum(1)
        values: Tensor = super().forward(logits, targets)
        return values * self.of_labels[targets.clamp(min=0)]  # type: ignore[index]


def criterion_of(recipe: Recipe, data: ImageData) -> nn.CrossEntropyLoss | None:
    """Return what takes the place of the plain cross-entropy, None where nothing does."""
    if recipe.class_weights == "balanced" or data.mixup:
        is_balanced = recipe.class_weights == "balanced"
        weights = balancing_weights(data) if is_balanced else torch.ones(len(data.classes))
        return WeighedCrossEntropy(weights, recipe.label_smoothing)
    smoothing = recipe.label_smoothing
    return nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none") if smoothing else None


def balancing_weights(data: ImageData) -> Tensor:
    """Return ``n / (k n_c)`` for each class, of the n labelled images in an epoch; 0 for a class without any.

    Classes that are drawn more often are counted so, and not weighed for it once more.
    """
    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    counts = times_of_classes(counts, data.draw).float()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return weights.where(counts > 0, 0.0)
