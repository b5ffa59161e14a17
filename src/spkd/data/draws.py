"""Which images an epoch has."""

from __future__ import annotations

import torch
from torch import Tensor

from spkd.data.options import Draw

_POWERS: dict[Draw, float] = {"plain": 1.0, "sqrt": 0.5, "balanced": 0.0}
"""To which power of their number images of a class come."""


def times_of_classes(counts: Tensor, draw: Draw) -> Tensor:
    """Return how many images of each class an epoch has, whose classes have n_c images, n in all.

    That is n n_c^p / Σ n_c^p, where p is 1 (``plain``), 1/2 (``sqrt``) or 0 (``balanced``; of the classes that there
    are images of), rounded up or down so that the sum is n.

    >>> times_of_classes(torch.tensor([6, 0, 2]), "balanced").tolist()
    [4, 0, 4]
    """
    if draw == "plain":
        return counts
    wanted = torch.where(counts > 0, counts.double() ** _POWERS[draw], 0)
    # Where the sums of the shares pass whole numbers.
    ends = (wanted.cumsum(0) / wanted.sum().clamp(min=1) * counts.sum()).round().long()
    return torch.diff(ends, prepend=ends.new_zeros(1))


def drawn_images(targets: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
    """Return the images of one epoch, as many as there are, in ascending order.

    Drawn ``plain`` each comes once. Else a class comes as often as :func:`times_of_classes` says; each of its images
    comes equally often but for one time, and those that come once more are drawn. Images without a label (targets below
    0) come once.

    Args:
        targets: class of each image, int64, (n,).
        draw: how often images of a class come.
        generator: of the random numbers, of which ``plain`` needs none.

    Returns:
        places of images, int64, (n,).

    >>> drawn_images(torch.tensor([0, 0, 0, 0, 1]), "sqrt", torch.Generator().manual_seed(0)).tolist()
    [0, 1, 3, 4, 4]
    """
    if draw == "plain":
        return torch.arange(len(targets))
    kinds, counts = torch.unique(targets, return_counts=True)
    of_kinds = torch.split(torch.argsort(targets, stable=True), counts.tolist())
    times = torch.where(kinds >= 0, times_of_classes(counts * (kinds >= 0), draw), counts)
    chosen = []
    for members, often in zip(of_kinds, times.tolist(), strict=True):
        whole, more = divmod(often, len(members))
        some = torch.randperm(len(members), generator=generator)[:more]
        chosen += [members.repeat(whole), members[some]]
    return torch.cat(chosen).sort().values
