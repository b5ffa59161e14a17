"""Stratified splits that divide no group of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkd.errors import InputError, some

TRIES = 10
"""How often, at most, it is tried to have every class in every set."""


def hold_out_groups(
    targets: Tensor, groups: Tensor, counts: Sequence[int], classes: Sequence[str], seed: int
) -> list[Tensor]:
    """Split off several sets of about ``counts`` images such that no group is divided.

    Every class has an image in each set. Groups are put into the sets one by one, those of the class with the fewest
    groups first (as single images in Sechidis, Tsoumakas, Vlahavas 2011, On the stratification of multi-label data), of
    these the largest first, and equal ones in random order. Each goes where Pearson's

        chi2 = sum over sets s and classes k of (n_sk - w_sk)^2 / w_sk

    of the images there are so far against those wanted grows least, all images counting as one more class; but before
    that, to a set without a class of which no more groups are left than there are sets without it. Where groups hold
    several classes, a set may lack one in the end: then all is done anew, with the groups of such a class first and the
    others of a class in random order, up to ``TRIES`` times in all. In which order the images come is of no effect.

    Args:
        targets: class of each image, int64, shape (n,).
        groups: number of each image's group, int64, shape (n,).
        counts: images to split off for each set; how near it comes is a matter of the groups' sizes.
        classes: the names, for the error's line.
        seed: of the order of equal groups.

    Returns:
        Indices that stay, then those of each set, in ascending order, int64.

    Raises:
        InputError: when a class has images of too few groups for each set to have some.

    >>> targets, groups = torch.tensor([0, 1, 0, 1, 0, 1, 1]), torch.tensor([5, 5, 7, 7, 9, 9, 9])
    >>> stay, held = hold_out_groups(targets, groups, [2], ["cat", "dog"], seed=0)
    >>> len(stay), len(held), set(groups[stay].tolist()) & set(groups[held].tolist())
    (5, 2, set())
    """
    spread = groups_of_classes(targets, groups, len(classes))
    refuse_few(spread, len(counts) + 1, classes, grouped=True)
    of_images = np.unique(groups.numpy(), return_inverse=True)[1]
    # The pairs of a group and a class that there are: a table of all would be gigabytes for many of both.
    pairs, numbers = np.unique(of_images * len(classes) + targets.numpy(), return_counts=True)
    of_pairs, labels = np.divmod(pairs, len(classes))
    firsts = np.flatnonzero(np.diff(of_pairs, prepend=-1))
    sizes = np.add.reduceat(numbers, firsts)
    inside = [
        list(zip(some.tolist(), of_each.tolist(), strict=True))
        for some, of_each in zip(np.split(labels, firsts[1:]), np.split(numbers, firsts[1:]), strict=True)
    ]
    shares = np.array([max(1, count) / len(targets) for count in (len(targets) - sum(counts), *counts)])
    wanted = np.outer(shares, np.append(np.bincount(targets.numpy(), minlength=len(classes)), len(targets)))
    generator = torch.Generator().manual_seed(seed)
    rank, smallness = spread.copy(), -sizes
    for _ in range(TRIES):
        drawn = torch.randperm(len(firsts), generator=generator).numpy()
        order = np.lexsort((drawn, smallness, np.minimum.reduceat(rank[labels], firsts)))
        places, lacking = _place(order.tolist(), inside, wanted.tolist(), spread.tolist())
        if not lacking:
            of_sets = np.array(places)[of_images]
            return [torch.from_numpy(np.flatnonzero(of_sets == place)) for place in range(len(shares))]
        rank[lacking] = rank.min() - 1
        smallness = np.zeros_like(sizes)
    since = ", since these hold images of other classes too"
    raise _too_few(lacking, spread, len(shares), classes, grouped=True, since=since)


def groups_of_classes(targets: Tensor, groups: Tensor, classes: int) -> NDArray[np.int64]:
    """Return the number of groups with images of each class, shape (classes,).

    >>> groups_of_classes(torch.tensor([0, 0, 1, 0]), torch.tensor([4, 4, 4, 2]), 3)
    array([2, 1, 0])
    """
    pairs = np.unique(groups.numpy() * classes + targets.numpy())
    return np.bincount(pairs % classes, minlength=classes)


def _place(
    order: Sequence[int],
    inside: Sequence[Sequence[tuple[int, int]]],
    wanted: Sequence[Sequence[float]],
    spread: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Put groups into sets; return the set of each group, and the classes that a set lacks.

    Args:
        order: in which the groups are taken.
        inside: of each group the classes and how many images of each.
        wanted: of each set the images of each class, and of all.
        spread: of each class the number of groups.
    """
    there = [[0] * len(of_classes) for of_classes in wanted]
    left, missing = list(spread), [len(wanted)] * len(spread)
    places = [0] * len(order)
    for group in order:
        parts = inside[group]
        urgent = [label for label, _ in parts if left[label] <= missing[label]]
        counted = [*parts, (len(spread), sum(number for _, number in parts))]
        # Of chi2, what is the same for every set is left out.
        costs = [
            (
                -sum(not has[label] for label in urgent),
                sum(number * (2 * has[label] + number) / wants[label] for label, number in counted),
            )
            for has, wants in zip(there, wanted, strict=True)
        ]
        places[group] = chosen = costs.index(min(costs))
        for label, _ in parts:
            left[label] -= 1
            missing[label] -= not there[chosen][label]
        for label, number in counted:
            there[chosen][label] += number
    return places, [label for label, sets in enumerate(missing) if sets]


def refuse_few(numbers: NDArray[np.int64], sets: int, classes: Sequence[str], *, grouped: bool) -> None:
    """Refuse classes with fewer images, or images of fewer groups where these are kept whole, than there are sets.

    Args:
        numbers: of each class its images, or its groups.
        sets: between how many sets the images are to be split.
        classes: the names, for the error's line.
        grouped: whether groups are kept whole.

    Raises:
        InputError: naming all such classes.
    """
    if len(labels := np.flatnonzero(numbers < sets)):
        raise _too_few(labels.tolist(), numbers, sets, classes, grouped=grouped)


def _too_few(
    labels: Sequence[int],
    numbers: NDArray[np.int64],
    sets: int,
    classes: Sequence[str],
    *,
    grouped: bool,
    since: str = "",
) -> InputError:
    have = f"1 of {len(classes)} classes has" if len(labels) == 1 else f"{len(labels)} of {len(classes)} classes have"
    what = "images of too few groups" if grouped else "too few images"
    named = some([f"{classes[label]!r} ({numbers[label]})" for label in labels], 10)
    more = "images of other groups" if grouped else "images of it" if len(labels) == 1 else "images of them"
    return InputError(
        f"data: {have} {what} to be split between {sets} sets{since}: {named}; add {more} or give all sets yourself"
    )
