"""The batches of a run: for training, for evaluation, and a few to look at first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spkd.data.images import Images, in_grey
from spkd.data.options import View
from spkd.data.stream import Batch, TrainStream, evaluation_batches
from spkd.models.classifier import ModelInfo
from spkd.training.setup import Setup

LOOKED_AT = 16
"""Images in the rehearsal before training."""
LARGEST_BATCH = 256
"""Images in an evaluation batch at the most; on a GPU, which they would leave idle, four times as many."""
PIXELS_PER_BATCH = LARGEST_BATCH * 64 * 64
"""Pixels of each channel in an evaluation batch at the most; on a GPU four times as many."""


def make_stream(setup: Setup, device: torch.device, part: tuple[int, int] = (0, 1)) -> TrainStream:
    """Return the training batches, or this process's ``part`` of them.

    Where batches are divided and the student has batch norms, which cannot train where a single image makes one place,
    each process must have two images.

    Raises:
        InputError: as :class:`~spkd.data.stream.TrainStream`.
    """
    norms = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in setup.student.modules())
    return TrainStream(
        setup.data.seen(),
        image_size=setup.image_size,
        teacher_size=setup.teacher_size,
        flip=setup.data.flip,
        turns=setup.data.turns,
        crop_scale=setup.data.crop_scale,
        augment=setup.data.augment,
        mixup=setup.data.mixup,
        draw=setup.data.draw,
        classes=len(setup.data.classes),
        batch_size=setup.recipe.batch_size,
        seed=setup.request.seed,
        device=device,
        workers=setup.request.data.workers,
        part=part,
        least=2 if norms and part[1] > 1 else 1,
    )


def first_batch(stream: TrainStream) -> Batch:
    """Return what a run begins with."""
    return next(iter(stream.batches(0)))


def own_batches(
    images: Images,
    setup: Setup,
    device: torch.device,
    image_size: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over a run's validation or test images, as its student takes them unless another size is given.

    ``part`` is of :func:`~spkd.data.stream.evaluation_batches`.
    """
    workers = setup.request.data.workers
    return batches_for(setup.student.info, images, device, workers=workers, image_size=image_size, part=part)


def batches_for(
    info: ModelInfo,
    images: Images,
    device: torch.device,
    *,
    workers: int | None,
    image_size: int | None = None,
    view: View | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over images as the network of this ``info`` takes them, unless a size or view is given, and targets.

    Batches are small enough for large images.
    """
    size = image_size or info.image_size
    return evaluation_batches(
        in_grey(images) if info.channels == 1 else images,
        image_size=size,
        batch_size=evaluation_batch_size(size, device),
        device=device,
        workers=workers,
        view=view or info.view,
        part=part,
    )


def evaluation_batch_size(image_size: int, device: torch.device) -> int:
    """Return how many images of this size are evaluated at a time.

    >>> [evaluation_batch_size(size, torch.device("cpu")) for size in (32, 224, 2000)]
    [256, 20, 1]
    >>> [evaluation_batch_size(size, torch.device("cuda")) for size in (32, 224, 2000)]
    [1024, 80, 1]
    """
    factor = 4 if device.type == "cuda" else 1
    return max(1, factor * min(LARGEST_BATCH, PIXELS_PER_BATCH // image_size**2))
