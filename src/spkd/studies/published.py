"""What the paper reports, as data, with how sure each figure is.

Source: F. Tung and G. Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019 (arXiv 1907.09682). Figures that
could not be read in a primary source carry that with them wherever they are shown. Cells of the tables on textures and
on CINIC-10 are not known, and none is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Certainty(Enum):
    """How sure a figure is: its mark beside the figure, and what the mark says."""

    QUOTED = ("‡", "as quoted by others, not seen in the paper itself")
    UNVERIFIED = ("†", "unverified: from memory, consistent with what others quote")

    @property
    def mark(self) -> str:
        """What is printed behind the figure."""
        return self.value[0]

    @property
    def meaning(self) -> str:
        """The footnote of the mark."""
        return self.value[1]


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        value: top-1 test error in percent.
        certainty: how sure it is.
    """

    value: float
    certainty: Certainty

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.certainty.mark}"


@dataclass(frozen=True)
class PublishedPair:
    """One line of the paper's CIFAR-10 table: medians of five runs.

    Attributes:
        student: the small network.
        teacher: the large one.
        methods: error of the student, by method; ``none`` is the student alone.
        teacher_alone: error of the teacher.
    """

    student: str
    teacher: str
    methods: Mapping[str, Published]
    teacher_alone: Published


def _quoted(value: float) -> Published:
    return Published(value, Certainty.QUOTED)


def _unverified(value: float) -> Published:
    return Published(value, Certainty.UNVERIFIED)


CIFAR10: tuple[PublishedPair, ...] = (
    PublishedPair(
        "wrn-16-1",
        "wrn-40-1",
        {"none": _quoted(8.74), "kd": _unverified(8.48), "at": _unverified(8.30), "sp": _quoted(8.13)},
        _quoted(6.51),
    ),
    PublishedPair(
        "wrn-16-1",
        "wrn-16-2",
        {"none": _quoted(8.74), "kd": _unverified(7.94), "at": _unverified(8.28), "sp": _unverified(7.52)},
        _unverified(6.07),
    ),
    PublishedPair(
        "wrn-16-2",
        "wrn-40-2",
        {"none": _unverified(6.07), "kd": _unverified(6.00), "at": _unverified(5.89), "sp": _unverified(5.52)},
        _quoted(5.18),
    ),
    PublishedPair(
        "wrn-16-2",
        "wrn-16-8",
        {"none": _unverified(6.07), "kd": _unverified(5.62), "at": _unverified(5.47), "sp": _unverified(5.34)},
        _quoted(4.24),
    ),
    PublishedPair(
        "wrn-40-2",
        "wrn-16-8",
        {"none": _quoted(5.18), "kd": _unverified(4.86), "at": _unverified(4.47), "sp": _quoted(4.55)},
        _quoted(4.24),
    ),
)
"""CIFAR-10, wide residual networks. The method of each figure is the key; SP is the best in four of the five pairs and
loses the last to AT (quoted by others)."""

STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "cifar10": (
        "SP is best in four of the five pairs and loses the last to AT; it lowers the error by 0.5 to 1.2 points",
        "WRN-16-2 and WRN-40-2 distilled beat the same networks trained alone",
    ),
    "combinations": (
        "AT+SP is best overall; SP alone lowers the error of ShuffleNet-V2 0.5 by 1.5 points, of 1.0 by 1.3",
    ),
    "architectures": (),
    "transfer": ("SP beats plain fine-tuning in every pair, AT does not",),
    "gamma": ("the error hardly moves over several orders of magnitude of γ",),
    "layers": ("layers nearer the output are better; the experiments use the last convolutional stage only",),
    "activations": ("images of one class excite the same channels of the last convolution",),
    "similarity": ("the block-diagonal is clearer in the larger network",),
    "loss-vs-error": ("a lower SP loss on test data goes with a lower test error",),
}
"""What is said of the paper's findings, by experiment, in our words; none was seen in a primary source."""

_ON_CINIC10 = "The paper's schedule on CINIC-10 is not known: ours there is that of a public reproduction."
SCHEDULE_NOT_KNOWN: Mapping[str, str] = {
    "combinations": _ON_CINIC10,
    "architectures": _ON_CINIC10,
    "transfer": "The paper's schedule of fine-tuning is not known: ours is the recipe for trained weights.",
}
"""Experiments whose schedule at the paper's scale is not the paper's, for all that is known."""


def published_pair(student: str, teacher: str) -> PublishedPair | None:
    """Return the paper's CIFAR-10 line of a pair, None where it has none."""
    return next((pair for pair in CIFAR10 if (pair.student, pair.teacher) == (student, teacher)), None)
