"""The embedded handwritten digits."""

from __future__ import annotations

import torch

from spkd.data.images import ImageData, MemoryImages, channel_statistics
from spkd.data.splits import hold_out

TRAIN, VAL, TEST = 500, 297, 1000


def load_digits() -> ImageData:
    """Return scikit-learn's 1,797 digits of 8x8 pixels, split 500 / 297 / 1,000, the same at every call.

    The values 0 to 16 are spread over 0 to 255. The split is stratified by class.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    levels = torch.as_tensor(digits.images, dtype=torch.float64).unsqueeze(1)
    everything = MemoryImages((levels * (255 / 16)).round().to(torch.uint8), torch.as_tensor(digits.target).long())
    classes = tuple("0123456789")
    stay, test = hold_out(everything.targets, TEST, classes)
    rest = everything.select(stay)
    train_indices, val_indices = hold_out(rest.targets, VAL, classes)
    train = rest.select(train_indices)
    mean, std = channel_statistics(train)
    return ImageData(
        name="digits",
        classes=classes,
        channels=1,
        train=train,
        val=rest.select(val_indices),
        test=everything.select(test),
        native_size=8,
        flip=False,
        normalisation_mean=mean,
        normalisation_std=std,
    )
