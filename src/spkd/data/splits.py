"""Stratified splits, the same at every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkd.data.images import Images
from spkd.data.seeds import mixed_seed
from spkd.errors import InputError

SPLIT_SEED = 2019
"""One seed for every split that is cut here, whatever a run's own seed: runs of unlike seeds, and a teacher
and its students, must agree on which images are the test set."""


@dataclass(frozen=True)
class Splits:
    """Images to learn from, to choose by and to be evaluated on, and how they were come by."""

    train: Images
    val: Images
    test: Images
    notes: tuple[str, ...]


def complete_splits(train: Images, val: Images | None, test: Images | None, classes: Sequence[str]) -> Splits:
    """Cut the sets that are not given from the others, stratified, the same at every call.

    A test set is half of the validation images where these are given, with two of each class or more: a teacher that
    learnt the training images would answer for those too well. Else the training images are cut: validation takes 10 %
    where only it is missing; a test set takes 15 %, and validation as many with it.

    Raises:
        InputError: when a class has too few images to give one to each set.
    """
    notes, why = [], ""
    lacking = [] if val is None else [name for name, size in _sizes(val.targets, classes) if size < 2]
    if test is None and lacking:
        why = f", and not of val/, which has fewer than two of {lacking[0]!r}: a network that learnt train/ knows them"
    elif test is None and val is not None:
        total = len(val)
        stay, held = hold_out(val.targets, total // 2, classes)
        val, test = val.select(stay), val.select(held)
        notes.append(
            f"test set: {len(test)} of the {total} validation images, cut by a fixed seed, stratified by class; "
            f"{len(val)} are left to choose by"
        )
    _check_enough(train.targets, 1 + (val is None) + (test is None), classes)
    total = len(train)
    if test is None:
        stay, held = hold_out(train.targets, round(0.15 * total), classes)
        train, test = train.select(stay), train.select(held)
        cut = f"{len(test)} of the {total} {'training ' if why else ''}images"
        notes.append(f"test set: {cut}, cut by a fixed seed, stratified by class{why}")
    if val is None:
        share = 0.15 if notes else 0.10  # with a test set that was cut, as many as that
        stay, held = hold_out(train.targets, round(share * total), classes)
        train, val = train.select(stay), train.select(held)
        notes.append(f"validation set: {len(val)} of the {total} images, cut by a fixed seed, stratified by class")
    return Splits(train, val, test, tuple(notes))


def _check_enough(targets: Tensor, needed: int, classes: Sequence[str]) -> None:
    """Check that every class has an image for each of the sets that the images are divided into."""
    if needed == 1:
        return
    for name, size in _sizes(targets, classes):
        if size < needed:
            raise InputError(
                f"data: class {name!r} has {size} image{'' if size == 1 else 's'} to be split between {needed} sets, "
                f"expected at least {needed}; add images of it or give the sets as folders of their own"
            )


def hold_out(targets: Tensor, count: int, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Split off ``count`` images such that every class gives its share.

    Every class gives at least one image and keeps at least one; where this asks for more images than
    ``count``, more are split off.

    Args:
        targets: class of each image, int64, shape (n,).
        count: images to split off.
        classes: the names, for the error's line.

    Returns:
        Indices that stay and indices split off, each in ascending order, int64.

    Raises:
        InputError: when a class has one image only.

    >>> stay, held = hold_out(torch.tensor([0, 0, 0, 0, 1, 1]), 3, ["cat", "dog"])
    >>> len(stay), len(held)
    (3, 3)
    """
    sizes = _sizes(targets, classes)
    for name, size in sizes:
        if size < 2:
            raise InputError(
                f"data: class {name!r} has {size} image to be split between two sets, expected at least 2; "
                f"add images of it or give the sets as folders of their own"
            )
    shares = _shares(np.array([size for _, size in sizes]), count)
    held = torch.zeros(len(targets), dtype=torch.bool)
    generator = torch.Generator().manual_seed(mixed_seed(SPLIT_SEED))
    # One sort for all classes: a look through all images for each of thousands would take minutes.
    of_classes = torch.split(torch.argsort(targets, stable=True), [size for _, size in sizes])
    for members, share in zip(of_classes, shares, strict=True):
        held[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return torch.nonzero(~held).squeeze(1), torch.nonzero(held).squeeze(1)


def _sizes(targets: Tensor, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Return how many images there are of each class."""
    return list(zip(classes, torch.bincount(targets, minlength=len(classes)).tolist(), strict=True))


def _shares(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Divide ``count`` among classes by size (largest remainder), each share in [1, size - 1]."""
    quotas = sizes * (count / sizes.sum())
    shares = np.clip(np.floor(quotas).astype(np.int64), 1, sizes - 1)
    while shares.sum() < count and (shares < sizes - 1).any():
        shares[np.argmax(np.where(shares < sizes - 1, quotas - shares, -np.inf))] += 1
    while shares.sum() > count and (shares > 1).any():
        shares[np.argmin(np.where(shares > 1, quotas - shares, np.inf))] -= 1
    return [int(share) for share in shares]
