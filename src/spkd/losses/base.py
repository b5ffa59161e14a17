"""What a distillation loss is, whatever it compares."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from spkd.errors import InputError, nearest
from spkd.taps import Activations, TapPair


class DistillationLoss(nn.Module, ABC):
    """A comparison of student and teacher in two halves, so that the teacher's half can be computed once.

    A loss of your own derives from this class and defines both methods. It reads one pair of layers if its
    constructor has a parameter ``pair``, which it then stores in ``pairs``::

        class MeanDifference(DistillationLoss):
            def __init__(self, pair: TapPair) -> None:
                super().__init__()
                self.pairs = (pair,)

            def remember(self, teacher: Activations) -> Tensor:
                return teacher.taps[self.pairs[0].teacher].flatten(1).mean(1)

            def forward(self, student: Activations, remembered: Tensor) -> Tensor:
                return (student.taps[self.pairs[0].student].flatten(1).mean(1) - remembered).square().mean()

    Attributes:
        pairs: the taps that the loss reads; empty when it reads logits only.
        reads_teacher_logits: whether :meth:`remember` reads the teacher's logits. Where no loss of an objective
            does, the teacher runs no further than the last layer that is read.
        mean_over_images: whether the value is a mean over images, each of which gives its part by itself. Of a batch
            that several processes divide, each then sees its own images only, and the means are averaged; what a loss
            needs of the others it takes by ``activations.gather``. A loss for which this is False sees the whole
            batch in every process.
    """

    pairs: tuple[TapPair, ...] = ()
    mean_over_images: bool = False
    reads_teacher_logits: bool = True

    @abstractmethod
    def remember(self, teacher: Activations) -> Tensor:
        """Return the least that the loss needs of the teacher for this batch, with the batch dimension first.

        ``teacher.logits`` are ``(b, k)``, ``teacher.taps[name]`` is what the layer gave, ``(b, ...)``. The result
        carries no gradient: :class:`spkd.losses.objective.Objective` calls this without gradients and detaches what
        comes back.
        """

    @abstractmethod
    def forward(self, student: Activations, remembered: Tensor) -> Tensor:
        """Compare the student with what :meth:`remember` returned for this batch: a scalar, unweighted.

        What a tape has kept comes back rounded to the tape's precision, float16 by default, as float32. The student's
        layers come as they are, under autocast in half precision: begin with ``.float()``. ``student.targets`` are the
        labels as the objective was given them (class indices with -100 where there is none, or
        probabilities), or None; with ``--mixup`` each class's share, float32, less than 1 in all where an image without
        a label is mixed in.
        """


def tapped(activations: Activations, name: str) -> Tensor:
    """Return what the layer ``name`` gave.

    Raises:
        InputError: when the layer was not tapped (its nearest names are listed).
    """
    if name not in activations.taps:
        known = ", ".join(activations.taps) or "none"
        raise InputError(
            f"the loss reads layer {name!r}, which was not tapped (tapped: {known}); "
            f"add it to the names given to Taps.{nearest(name, activations.taps)}"
        )
    return activations.taps[name]
