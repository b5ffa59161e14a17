"""Which images an epoch has, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from spkd.data.options import Draw

_POWERS: dict[Draw, float] = {"sqrt": 0.5, "balanced": 0.0}
"""To which power of their number images of a class come."""


def drawn_order(targets: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
    """Return the images of one epoch in a random order, as many as there are.

    Drawn ``plain`` each comes once. Else a class c of n_c images comes in proportion to n_c^p, where p is 0
    (``balanced``) or 1/2 (``sqrt``), rounded so that the sum is right; each of its images comes equally often but for
    one time, and those that come once more are drawn. Images without a label (targets below 0) come once.

    Args:
        targets: class of each image, int64, (n,).
        draw: how often images of a class come.
        generator: of the random numbers.

    Returns:
        places of images, int64, (n,).

    >>> targets = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    >>> order = drawn_order(targets, "balanced", torch.Generator().manual_seed(0))
    >>> targets[order].sum().item(), order[targets[order] == 1].sort()[0].tolist()
    (4, [6, 6, 7, 7])
    """
    if draw == "plain":
        return torch.randperm(len(targets), generator=generator)
    kinds, counts = torch.unique(targets, return_counts=True)
    of_kinds = torch.split(torch.argsort(targets, stable=True), counts.tolist())
    is_label = kinds >= 0
    labelled = counts[is_label].sum()
    wanted = torch.where(is_label, counts.double() ** _POWERS[draw], 0)
    # The places where the sums of the shares pass whole numbers: each is its share rounded up or down.
    ends = (wanted.cumsum(0) / wanted.sum() * labelled).round().long()
    times = torch.where(is_label, torch.diff(ends, prepend=ends.new_zeros(1)), counts)
    chosen = []
    for members, often in zip(of_kinds, times.tolist(), strict=True):
        whole, more = divmod(often, len(members))
        some = torch.randperm(len(members), generator=generator)[:more]
        chosen += [members.repeat(whole), members[some]]
    drawn = torch.cat(chosen)
    return drawn[torch.randperm(len(drawn), generator=generator)]
