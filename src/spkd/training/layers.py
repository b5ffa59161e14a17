"""The layers of two networks that can be compared, and which are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.models.build import build_model
from spkd.models.classifier import Classifier, Normalisation
from spkd.models.network import HeadMismatch
from spkd.models.saved_model import find_meant, read_info
from spkd.models.weights_source import model_defaults
from spkd.pairing import Candidate, block_ends, pair_taps
from spkd.taps import TapPair
from spkd.training.seen import STREAMED_SIZE

CIFAR_SIZE = 32
"""Side length that the wide residual networks are made for."""


@dataclass(frozen=True)
class Layers:
    """What ``spkd taps`` shows; shapes are of one image."""

    image_shape: tuple[int, int, int]
    student: tuple[Candidate, ...]
    teacher: tuple[Candidate, ...]
    pairs: tuple[TapPair, ...]


def find_layers(
    *,
    student: str,
    teacher: str,
    weights: str | None = None,
    teacher_weights: str | None = None,
    data: DataOptions | None = None,
    image_size: int | None = None,
    grey: bool = False,
    select: tuple[str, ...] = ("last",),
) -> Layers:
    """Find the block ends of two networks and the pairs that ``select`` chooses.

    Without ``data`` the images are made up: in colour unless a saved network is of grey images or ``grey`` is given, of
    ``image_size``, else the networks' own size, or 32 pixels where one is a CIFAR wide residual network, else 224.
    Weights decide nothing but the size.

    Raises:
        InputError: for an unknown network, layer or data set.
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
    sizes = (
        image_size,
        *(model_defaults(*pair).image_size for pair in ((teacher, teacher_weights), (student, weights))),
    )
    made_for_cifar = data is None and any(spec.startswith("wrn-") for spec in (student, teacher))
    usual = CIFAR_SIZE if made_for_cifar else STREAMED_SIZE
    size = next(one for one in (*sizes, native, usual) if one is not None)

    def build(spec: str, classes: tuple[str, ...] | None) -> Classifier:
        try:
            return build_model(
                spec, classes=classes, channels=channels, image_size=size, normalisation=normalisation
            ).classifier
        except HeadMismatch:
            return build(spec, None)

    networks = [build(spec, classes) for spec in (student, teacher)]
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return Layers(
        image_shape=(channels, size, size),
        student=tuple(block_ends(networks[0], images)),
        teacher=tuple(block_ends(networks[1], images)),
        pairs=tuple(pair_taps(networks[0], networks[1], images, select)),
    )
