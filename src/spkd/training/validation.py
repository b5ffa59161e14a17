"""The validation after an epoch: a run may end in its midst, and several processes divide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spkd.errors import ReaderDied, UnreadableImage
from spkd.processes import first_said, share_buffers
from spkd.training.devices import sum_of_all
from spkd.training.evaluation import Errors, errors_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches = Iterator[tuple[Tensor, Tensor]]


def errors_unless(is_over: Callable[[], bool], student: nn.Module, batches: Batches, classes: int) -> Errors | None:
    """Return the student's errors, None where the run is over before they are known."""

    def until_then() -> Batches:
        for batch in batches:
            if is_over():
                raise _Over
            yield batch

    try:
        return errors_of(student, until_then(), classes)
    except _Over:
        return None


class _Over(Exception):
    """A run is over in the midst of a validation."""


def errors_of_all(
    fabric: Fabric, student: nn.Module, batches: Batches, classes: int, save: Callable[[], None]
) -> Errors:
    """Return the errors where each process gives the batches of its own part, of the first one's student.

    All evaluate, so that none waits for another longer than it may.

    Raises:
        UnreadableImage: in all of them, after ``save`` has been called, when one has met such an image.
        ReaderDied: in all of them likewise, when a process that reads images for one has died.
    """
    failures: dict[type[Exception], list[str]] = {ReaderDied: [], UnreadableImage: []}

    def readable() -> Batches:
        try:
            yield from batches
        except (ReaderDied, UnreadableImage) as error:
            failures[type(error)].append(str(error))

    def total(counts: Tensor) -> Tensor:
        failed = counts.new_tensor([len(said) for said in failures.values()])
        summed = sum_of_all(fabric, torch.cat([counts.flatten(), failed]))
        for (kind, said), several in zip(failures.items(), summed[-len(failures) :].tolist(), strict=True):
            if several:
                save()
                raise kind(first_said(said))
        return summed[: -len(failures)].view_as(counts)

    share_buffers(student)
    return errors_of(student, readable(), classes, total)
