"""Batches for training and for evaluation.

The training stream is a pure function of (images, seed, epoch): neither the device, nor the number of
workers, nor the batch at which it is entered changes what an image looks like. (Where images in memory are
enlarged for the network, which is done on the device, devices may differ by one of 256 levels.)
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spkd.data.augment import (
    Crops,
    augmented,
    crop_views,
    draw_crops,
    fixed_view,
    pad_reflect,
    padding,
    random_resized_crop,
    resize,
    resizing,
    side_for_crop,
    side_for_view,
    to_unit_range,
)
from spkd.data.images import Images, MemoryImages, usual_view
from spkd.data.options import CROP_SCALE, Augment, View
from spkd.data.seeds import Use, mixed_seed
from spkd.errors import InputError, RunFailed, UnreadableImage, one_line
from spkd.machine import usable_cpus

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a training step is made of.

    Attributes:
        images: float32 in [0, 1], shape (b, c, image_size, image_size).
        targets: their classes, int64, shape (b,).
        shown: the same views at the teacher's size; ``images`` themselves where that is the same.
    """

    images: Tensor
    targets: Tensor
    shown: Tensor


class TrainStream:
    """Shuffled, augmented batches, the same for the same images, seed and epoch.

    Every epoch gives every image once, in an order of its own. Images in memory live on the device and are
    augmented there in batches: reflect padding by an eighth of the side, a random crop, a random flip. Others
    are read by worker processes: a random resized crop and a random flip of each. What ``augment`` does besides is done
    by these too, to images in memory as well.

    A last batch of fewer images is given too, unless it would be a single image, on which batch norm cannot
    train (with a batch size of 1 all are given).

    Args:
        images: the training images.
        image_size: side length of the images given.
        teacher_size: side length at which a teacher is shown the same views, ``image_size`` or more (None: that).
        flip: whether images may be mirrored.
        crop_scale: least share of the area of an image in a file that a view shows, in (0, 1].
        augment: what else is done to them, as :func:`~spkd.data.augment.augmented` does it.
        batch_size: images in a batch.
        seed: of the order and the augmentation.
        device: where the batches are wanted.
        workers: processes that read files (0: this one, None: as many as threads compute, from 2 to 8); without effect
            on images in memory unless they are changed by ``augment``.
        part: which part of every batch is given, and in how many parts it is divided; they differ by at most one image.
        least: how many images each part of every batch must have.

    Attributes:
        batches_per_epoch: how many batches an epoch has.
        last_batch_size: images in the last batch of an epoch, all parts together.

    Raises:
        InputError: when the batch size is below 1 or above the number of images, or a batch cannot be divided.
    """

    def __init__(
        self,
        images: Images,
        *,
        image_size: int,
        teacher_size: int | None = None,
        flip: bool,
        batch_size: int,
        seed: int,
        device: torch.device,
        crop_scale: float = CROP_SCALE,
        augment: Augment = "none",
        workers: int | None = 0,
        part: tuple[int, int] = (0, 1),
        least: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if batch_size > len(images):
            raise InputError(
                f"batch_size: {batch_size} is more than the {len(images)} training images; "
                f"try --batch_size {max(1, min(128, len(images) // 4))}"
            )
        _check_size(image_size)
        self._images = images
        self._sizes = (image_size,) if teacher_size in (None, image_size) else (image_size, teacher_size)
        self._flip = flip
        self._crop_scale = crop_scale
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._workers = workers
        self._part, self._parts = part
        full, left = divmod(len(images), batch_size)
        self.batches_per_epoch = full + (left > 1)
        self.last_batch_size = left if left > 1 else batch_size
        if min(batch_size, self.last_batch_size) < least * self._parts:
            raise InputError(
                f"batch_size: with {batch_size} an epoch's last batch has {self.last_batch_size} images, too few for "
                f"{self._parts} processes, each of which needs {least}; "
                f"try --batch_size {_nearest_size(batch_size, len(images), least * self._parts)}"
            )
        if isinstance(images, MemoryImages):
            # Enlarged only after the crop, so that 32x32 images for a 224x224 network still fit in memory.
            self._crop_size = min(images.size, max(self._sizes))
            small = resize(images.pixels, self._crop_size)
            held_on = device if augment == "none" else torch.device("cpu")
            self._padded = pad_reflect(small.to(held_on), padding(self._crop_size))
            self._targets = images.targets.to(held_on)

    def size(self, batch: int) -> int:
        """Return how many images a batch of an epoch has, all parts together."""
        return self.last_batch_size if batch == self.batches_per_epoch - 1 else self._batch_size

    def own_size(self, batch: int) -> int:
        """Return how many images of a batch of an epoch are in this process's part."""
        least, more = divmod(self.size(batch), self._parts)
        return least + (self._part < more)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the images and targets of :meth:`batches`."""
        return ((batch.images, batch.targets) for batch in self.batches(epoch, start))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch.

        Args:
            epoch: which epoch; any whole number.
            start: how many batches to pass over (nothing is read or computed for them).

        Raises:
            InputError: when ``start`` is not in [0, batches_per_epoch]; while iterating, when a file cannot
                be read.
        """
        if not 0 <= start <= self.batches_per_epoch:
            raise InputError(f"start: expected 0 to {self.batches_per_epoch} batches, got {start}")
        generator = torch.Generator().manual_seed(mixed_seed(Use.ORDER, self._seed, epoch))
        order = torch.randperm(len(self._images), generator=generator)
        if not isinstance(self._images, MemoryImages):
            views = _TrainViews(
                self._images, self._sizes, self._flip, self._crop_scale, self._augment, self._seed, epoch
            )
            return self._from_workers(views, self._parts_of(order, start))
        # Drawn for the whole epoch: one transfer to the device, not four for each batch.
        margin = padding(self._crop_size)
        crops = draw_crops(len(order), margin, self._flip, mixed_seed(Use.CROPS, self._seed, epoch))
        if self._augment == "none":
            return self._from_memory(self._parts_of(order.to(self._device), start), crops.to(self._device))
        small = _SmallViews(
            self._padded,
            self._targets,
            crops,
            self._crop_size,
            self._sizes,
            self._augment,
            self._seed,
            epoch,
        )
        return self._from_workers(small, self._parts_of(order, start))

    def _parts_of(self, order: Tensor, start: int) -> list[Tensor]:
        """Return this process's part of every batch from ``start`` on."""
        whole = _parts(order, self._batch_size)[start : self.batches_per_epoch]
        return [torch.tensor_split(batch, self._parts)[self._part] for batch in whole]

    def _from_workers(self, views: _TrainViews | _SmallViews, batches: list[Tensor]) -> Iterator[Batch]:
        for pixels, targets in _from_workers(views, batches, self._device, self._workers):
            yield Batch(pixels[0], targets, pixels[-1])

    def _from_memory(self, batches: list[Tensor], crops: Crops) -> Iterator[Batch]:
        several = _batches_at_once(self._device)
        for first in range(0, len(batches), several):
            together = batches[first : first + several]
            indices = torch.cat(together)
            sizes = [len(batch) for batch in together]
            small = crop_views(self._padded, indices, crops[indices], self._crop_size)
            targets = self._targets[indices]
            for pixels, classes in zip(torch.split(small, sizes), torch.split(targets, sizes), strict=True):
                views = [to_unit_range(resize(pixels, size)) for size in self._sizes]
                yield Batch(views[0], classes, views[-1])


def evaluation_batches(
    images: Images,
    *,
    image_size: int,
    batch_size: int,
    device: torch.device,
    workers: int | None = 0,
    view: View | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over all images, in order and without augmentation.

    Args:
        images: the images.
        image_size: side length of the images given.
        batch_size: images in a batch; the last may have fewer.
        device: where the batches are wanted.
        workers: processes that read files, as of :class:`TrainStream`.
        view: ``whole``, resized where their size is another, or ``centre``, cut out after the shorter side has been
            resized to 8/7 of ``image_size``. Default: as :func:`~spkd.data.images.usual_view`.

    Returns:
        Pairs of images, float32 in [0, 1] of shape (b, c, image_size, image_size), and targets, int64 of shape (b,),
        on the device.

    Raises:
        InputError: when the batch size or image size is below 1; while iterating, when a file cannot be read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    _check_size(image_size)
    view = view or usual_view(images)
    if isinstance(images, MemoryImages):
        if view == "whole":
            return _whole_images(images, image_size, batch_size, device)
        workers = 0
    batches = _parts(torch.arange(len(images)), batch_size)
    seen = _from_workers(_FixedViews(images, (image_size,), view), batches, device, workers)
    return ((views[0], targets) for views, targets in seen)


def _whole_images(
    images: MemoryImages, image_size: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        pixels = images.pixels[part].to(device)
        yield to_unit_range(resize(pixels, image_size)), images.targets[part].to(device)


class _Unreadable(str):
    """What is wrong with an image that cannot be had.

    Handed from a worker to the main process, where it is raised: an error raised in a worker would arrive
    with the worker's whole traceback as its text.
    """

    __slots__ = ()


_Item = tuple[list[Tensor], int] | _Unreadable
"""The views of an image, one of each size, and its target."""


@dataclass(frozen=True)
class _TrainViews(Dataset[_Item]):
    """A random view of each image, a function of (seed, epoch, index)."""

    images: Images
    sizes: tuple[int, ...]
    flip: bool
    scale: float
    augment: Augment
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> _Item:
        try:
            image = self.images.image(index, side_for_crop(max(self.sizes), self.scale))
        except UnreadableImage as error:
            return _Unreadable(error.brief)
        seed = mixed_seed(Use.VIEW, self.seed, self.epoch, index)
        views = [random_resized_crop(image, size, self.flip, seed, self.scale) for size in self.sizes]
        seed = mixed_seed(Use.AUGMENT, self.seed, self.epoch, index)
        return [augmented(view, self.augment, seed) for view in views], int(self.images.targets[index])


@dataclass(frozen=True, eq=False)
class _SmallViews(Dataset[_Item]):
    """The view that ``crops`` says of each image in memory, enlarged and augmented by (seed, epoch, index)."""

    padded: Tensor
    targets: Tensor
    crops: Crops
    crop_size: int
    sizes: tuple[int, ...]
    augment: Augment
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> _Item:
        place = torch.tensor([index])
        view = crop_views(self.padded, place, self.crops[place], self.crop_size)[0]
        seed = mixed_seed(Use.AUGMENT, self.seed, self.epoch, index)
        views = [augmented(resize(view, size), self.augment, seed) for size in self.sizes]
        return views, int(self.targets[index])


@dataclass(frozen=True)
class _FixedViews(Dataset[_Item]):
    """The whole or the centre of each image."""

    images: Images
    sizes: tuple[int]
    view: View

    def __getitem__(self, index: int) -> _Item:
        (size,) = self.sizes
        try:
            image = self.images.image(index, side_for_view(size, self.view))
            return [fixed_view(image, size, self.view)], int(self.images.targets[index])
        except UnreadableImage as error:
            return _Unreadable(error.brief)


def _collate(items: list[_Item]) -> tuple[list[Tensor], Tensor] | _Unreadable:
    views, targets = [], []
    for item in items:
        if isinstance(item, _Unreadable):
            return item
        views.append(item[0])
        targets.append(item[1])
    return [torch.stack(alike) for alike in zip(*views, strict=True)], torch.tensor(targets)


def _from_workers(
    views: _TrainViews | _SmallViews | _FixedViews, batches: Sequence[Tensor], device: torch.device, workers: int | None
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Give the views in batches, one of each size, as bytes to the device and as floats from there on."""
    wanted = min(max(2, min(torch.get_num_threads(), 8)), usable_cpus()) if workers is None else workers
    largest = max((len(batch) for batch in batches), default=0)
    most = min(wanted, len(batches))
    workers = min(most, _with_shared_memory(3 * sum(size**2 for size in views.sizes) * largest))
    if workers < most:
        _tell_of_memory(workers, most)
    resizing()  # or every worker would import it for itself, at every epoch
    on_gpu = device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=on_gpu,
        multiprocessing_context=_start_method() if workers else None,
        worker_init_fn=_leave_signals_to_the_parent if workers else None,
        # Its own, or each pass would draw a number from the generator that dropout uses.
        generator=torch.Generator(),
    )
    try:
        for batch in _started(loader):
            if isinstance(batch, _Unreadable):
                raise UnreadableImage(str(batch))
            pixels, targets = batch
            shown = [to_unit_range(alike.to(device, non_blocking=on_gpu)) for alike in pixels]
            yield shown, targets.to(device, non_blocking=on_gpu)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunFailed(
            f"a process that reads images has died ({one_line(error)}): fewer --workers need less memory, and so do "
            "smaller batches; in a container the shared memory may be too small (--shm-size)"
        ) from error


def _with_shared_memory(batch: int) -> int:
    """Return how many processes can hand on batches of so many bytes: containers often have little memory for that.

    Each has two that are asked for ahead, and one that is being taken. Half of what is free is left to others, and the
    rest divided among the processes of a run.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # a system without
        return sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // max(1, 3 * batch)


@cache
def _tell_of_memory(workers: int, wanted: int) -> None:
    """Log a line, once, where there is shared memory for fewer processes than there might be."""
    reading = f"{workers} of {wanted} processes read images" if workers else "images are read one by one"
    _log.warning("%s, since there is little shared memory; in a container: docker run --shm-size=1g", reading)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Go on after a Ctrl-C or a scheduler's SIGTERM to the group: the parent finishes its step, saves, and ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _start_method() -> str:
    """Return how workers start: by fork where there is one.

    Workers only read files and never touch a GPU, so they may be forked, which takes milliseconds; others
    import torch anew, seconds at every epoch, and fail in scripts without a main guard.
    """
    import multiprocessing

    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return "fork" if can_fork else "spawn"


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Python 3.12 and later warn of every fork in a process with threads.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        return iter(loader)


def _batches_at_once(device: torch.device) -> int:
    """Return how many batches in memory are augmented in one go.

    A GPU is done with small works sooner than the processor can tell it of them. A processor's caches hold one batch
    best.
    """
    return 1 if device.type == "cpu" else 16


def _nearest_size(batch_size: int, images: int, least: int) -> int:
    """Return the batch size nearest to one, of which every batch of an epoch has so many images."""

    def fits(size: int) -> bool:
        return images % size < 2 or images % size >= least

    sizes = (size for size in range(least, images + 1) if fits(size))
    return min(sizes, key=lambda size: abs(size - batch_size), default=images)


def _parts(order: Tensor, batch_size: int) -> list[Tensor]:
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise InputError(f"image_size: expected a side length of at least 1 pixel, got {image_size}")
