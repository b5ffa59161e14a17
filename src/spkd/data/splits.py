"""Stratified splits, the same at every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkd.data.group_splits import groups_of_classes, hold_out_groups, refuse_few
from spkd.data.images import Images
from spkd.data.seeds import mixed_seed
from spkd.errors import some

SPLIT_SEED = 2019
"""One seed for every split that is cut here, whatever a run's own seed: runs of unlike seeds, and a teacher
and its students, must agree on which images are the test set."""

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The sets, and what each may be called, in lower case, in folders and lists."""


@dataclass(frozen=True)
class Splits:
    """Images to learn from, to choose by and to be evaluated on, and how they were come by."""

    train: Images
    val: Images
    test: Images
    notes: tuple[str, ...]


def complete_splits(
    train: Images,
    val: Images | None,
    test: Images | None,
    classes: Sequence[str],
    groups: Mapping[str, Tensor] | None = None,
) -> Splits:
    """Cut the sets that are not given from the others, stratified, the same at every call.

    A test set is half of the validation images where these are given, with two of each class or more: a teacher that
    learnt the training images would answer for those too well. Else the training images are cut: validation takes 10 %
    where only it is missing; a test set takes 15 %, and validation as many with it.

    Args:
        train: training images.
        val: validation images, where they are given.
        test: test images, where they are given.
        classes: the names, for notes and errors.
        groups: number of each image's group, int64, shape (n,), for ``train`` and, where it is given, ``val``. No group
            is divided then, the shares are as near as that allows, and ``val`` needs two groups of each class.

    Raises:
        InputError: when a class has too few images to give one to each set, or images of too few groups.
    """
    notes, why = [], ""
    of_train, of_val = (None if groups is None else groups.get(name) for name in ("train", "val"))
    given = {name: images for name, images in (("test", test), ("validation", val)) if images is not None}
    sets = {"train": train, "val": val, "test": test}
    require_enough({name: one.targets for name, one in sets.items() if one is not None}, classes, groups)
    lacking = [] if val is None else _rare(val.targets, of_val, classes)
    if test is None and lacking:
        fewer = f"fewer than two {'' if of_val is None else 'groups '}of {some(lacking, 5)}"
        why = f", since val/ has {fewer}; a network that has learnt train/ already knows them"
    elif test is None and val is not None:
        total = len(val)
        given["validation"], [(given["test"], how)] = _cut(val, [total // 2], classes, of_val)
        notes.append(
            f"test set: {len(given['test'])} of the {total} validation images, {how}; {len(given['validation'])} "
            "stay for validation"
        )
    missing = [name for name in ("test", "validation") if name not in given]
    total = len(train)
    share = 0.15 if "test" in missing else 0.10  # with a test set that is cut, as many as that
    train, parts = _cut(train, [round(share * total)] * len(missing), classes, of_train)
    for name, (images, how) in zip(missing, parts, strict=True):
        given[name] = images
        notes.append(f"{name} set: {len(images)} of the {total} {'training ' if why else ''}images, {how}{why}")
    return Splits(train, given["validation"], given["test"], tuple(notes))


def require_enough(
    targets: Mapping[str, Tensor], classes: Sequence[str], groups: Mapping[str, Tensor] | None = None
) -> None:
    """Check that every class has enough for each set that :func:`complete_splits` would cut from training images.

    Args:
        targets: class of each image of the sets that are given: ``train``, and perhaps ``val`` and ``test``.
        classes: as there.
        groups: as there.

    Raises:
        InputError: naming the classes that have too few images, or images of too few groups.
    """
    of_train, of_val = (None if groups is None else groups.get(name) for name in ("train", "val"))
    cut = ("val" not in targets) + (
        "test" not in targets and ("val" not in targets or bool(_rare(targets["val"], of_val, classes)))
    )
    if cut:
        numbers = _numbers(targets["train"], of_train, classes)
        refuse_few(numbers, 1 + cut, classes, grouped=of_train is not None)


def _rare(targets: Tensor, groups: Tensor | None, classes: Sequence[str]) -> list[str]:
    """Return the classes, in quotes, of fewer than two images, or of fewer than two groups where these are given."""
    return [repr(name) for name, number in zip(classes, _numbers(targets, groups, classes), strict=True) if number < 2]


def _numbers(targets: Tensor, groups: Tensor | None, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return how many images there are of each class, or of how many groups where these are given."""
    if groups is not None:
        return groups_of_classes(targets, groups, len(classes))
    return np.bincount(targets.numpy(), minlength=len(classes))


def _cut(
    images: Images, counts: Sequence[int], classes: Sequence[str], groups: Tensor | None
) -> tuple[Images, list[tuple[Images, str]]]:
    """Cut off sets of so many images; return what stays, and each set with words on how it was cut."""
    if not counts:
        return images, []
    how = "cut by a fixed seed, stratified by class"
    if groups is not None:
        stay, *held = hold_out_groups(images.targets, groups, counts, classes, mixed_seed(SPLIT_SEED))
        total, *numbers = (len(np.unique(numbered)) for numbered in (groups, *(groups[one] for one in held)))
        told = [f"{how}, no group divided ({number} of {total} groups)" for number in numbers]
    else:
        stay, held, told = torch.arange(len(images)), [], [how] * len(counts)
        for count in counts:
            left, taken = hold_out(images.targets[stay], count, classes)
            held.append(stay[taken])
            stay = stay[left]
    return images.select(stay), [(images.select(one), words) for one, words in zip(held, told, strict=True)]


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
    sizes = _numbers(targets, None, classes)
    refuse_few(sizes, 2, classes, grouped=False)
    shares = _shares(sizes, count)
    held = torch.zeros(len(targets), dtype=torch.bool)
    generator = torch.Generator().manual_seed(mixed_seed(SPLIT_SEED))
    # One sort for all classes: a look through all images for each of thousands would take minutes.
    of_classes = torch.split(torch.argsort(targets, stable=True), sizes.tolist())
    for members, share in zip(of_classes, shares, strict=True):
        held[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return torch.nonzero(~held).squeeze(1), torch.nonzero(held).squeeze(1)


def _shares(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Divide ``count`` among classes by size (largest remainder), each share in [1, size - 1]."""
    quotas = sizes * (count / sizes.sum())
    shares = np.clip(np.floor(quotas).astype(np.int64), 1, sizes - 1)
    while shares.sum() < count and (shares < sizes - 1).any():
        shares[np.argmax(np.where(shares < sizes - 1, quotas - shares, -np.inf))] += 1
    while shares.sum() > count and (shares > 1).any():
        shares[np.argmin(np.where(shares > 1, quotas - shares, np.inf))] -= 1
    return [int(share) for share in shares]
