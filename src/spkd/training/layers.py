"""The layers of two networks that can be compared, and which are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.models.build import build_model
from spkd.models.classifier import Classifier, Normalisation
from spkd.models.network import HeadMismatch
from spkd.models.saved_model import find_meant, read_info
from spkd.pairing import Candidate, block_ends, pair_taps
from spkd.taps import TapPair
from spkd.training.options import Request
from spkd.training.seen import STREAMED_SIZE, own_sizes, teacher_size_for

CIFAR_SIZE = 32
"""Side length that the wide residual networks are made for."""


@dataclass(frozen=True)
class Layers:
    """What ``spkd taps`` shows; shapes are of one image, the first as the student sees it."""

    image_shape: tuple[int, int, int]
    student: tuple[Candidate, ...]
    teacher: tuple[Candidate, ...]
    pairs: tuple[TapPair, ...]
    teacher_size: int | None = None


def find_layers(
    *,
    student: str,
    teacher: str,
    weights: str | None = None,
    teacher_weights: str | None = None,
    data: DataOptions | None = None,
    image_size: int | None = None,
    teacher_size: int | None = None,
    grey: bool = False,
    select: tuple[str, ...] = ("last",),
) -> Layers:
    """Find the block ends of two networks and the pairs that ``select`` chooses.

    Without ``data`` the images are made up: in colour unless a saved network is of grey images or ``grey`` is given, of
    ``image_size``, else the networks' own size, or 32 pixels where one is a CIFAR wide residual network, else 224.
    Weights decide nothing but the size. ``teacher_size`` is that at which the teacher sees them, if a larger one.

    Raises:
        InputError: for an unknown network, layer or data set, or a teacher's size that is less than the student's.
    """
    saved = [folder for spec in (student, teacher) if (folder := find_meant(spec)) is not None]
    channels = 1 if grey or any(read_info(folder).channels == 1 for folder in saved) else 3
    classes, native = tuple(str(place) for place in range(10)), None
    normalisation = Normalisation((0.5,), (0.5,))
    if data is not None:
        loaded = load_data(data)
        channels, classes, native = loaded.channels, loaded.classes, loaded.native_size
        normalisation = Normalisation(loaded.normalisation_mean, loaded.normalisation_std)
        image_size = data.image_size
    request = Request(
        student,
        weights,
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_size=teacher_size,
        data=data or DataOptions(),
    )
    own = own_sizes(request)
    sizes = (image_size, None if teacher_size else own["teacher"], own["student"])
    made_for_cifar = data is None and any(spec.startswith("wrn-") for spec in (student, teacher))
    usual = CIFAR_SIZE if made_for_cifar else STREAMED_SIZE
    size = next(one for one in (*sizes, native, usual) if one is not None)

    seen_by_teacher = teacher_size_for(request, size)

    def build(spec: str, size: int, classes: tuple[str, ...] | None) -> Classifier:
        try:
            return build_model(
                spec, classes=classes, channels=channels, image_size=size, normalisation=normalisation
            ).classifier
        except HeadMismatch:
            return build(spec, size, None)

    def made_up(size: int) -> Tensor:
        return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))

    small, large = build(student, size, classes), build(teacher, seen_by_teacher, classes)
    images, larger = made_up(size), made_up(seen_by_teacher)
    return Layers(
        image_shape=(channels, size, size),
        student=tuple(block_ends(small, images)),
        teacher=tuple(block_ends(large, larger)),
        pairs=tuple(pair_taps(small, large, images, select, teacher_images=larger)),
        teacher_size=None if seen_by_teacher == size else seen_by_teacher,
    )
