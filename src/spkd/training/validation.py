"""The validation after an epoch: a run may end in its midst, and several processes divide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spkd.errors import UnreadableImage
from spkd.processes import first_said, share_buffers
from spkd.training.devices import sum_of_all
from spkd.training.evaluation import top1_error

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches = Iterator[tuple[Tensor, Tensor]]


def error_unless(is_over: Callable[[], bool], student: nn.Module, batches: Batches) -> float | None:
    """Return the student's error in percent, None where the run is over before it is known."""

    def until_then() -> Batches:
        for batch in batches:
            if is_over():
                raise _Over
            yield batch

    try:
        return top1_error(student, until_then())
    except _Over:
        return None


class _Over(Exception):
    """A run is over in the midst of a validation."""


def error_of_all(fabric: Fabric, student: nn.Module, batches: Batches, save: Callable[[], None]) -> float:
    """Return the error in percent where each process gives the batches of its own part, of the first one's student.

    All evaluate, so that none waits for another longer than it may.

    Raises:
        UnreadableImage: in all of them, after ``save`` has been called, when one has met such an image.
    """
    failures: list[str] = []

    def readable() -> Batches:
        try:
            yield from batches
        except UnreadableImage as error:
            failures.append(str(error))

    def total(counts: Tensor) -> Tensor:
        counts = sum_of_all(fabric, torch.cat([counts, counts.new_tensor([len(failures)])]))
        if counts[2]:
            save()
            raise UnreadableImage(first_said(failures))
        return counts[:2]

    share_buffers(student)
    return top1_error(student, readable(), total)
