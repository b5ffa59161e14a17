"""Batches for training and for evaluation.

The training stream is a pure function of (images, seed, epoch): neither the device, nor the number of
workers, nor the batch at which it is entered changes what an image looks like. (Where images in memory are
enlarged for the network, which is done on the device, devices may differ by one of 256 levels.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spkd.data.augment import (
    Crops,
    crop_views,
    draw_crops,
    draw_share,
    draw_turns,
    mix_images,
    mix_labels,
    pad_reflect,
    padding,
    resize,
    to_unit_range,
    turn_images,
)
from spkd.data.draws import drawn_images
from spkd.data.images import Images, MemoryImages, usual_view
from spkd.data.options import CROP_SCALE, Augment, Draw, View
from spkd.data.seeds import Use, mixed_seed
from spkd.data.views import FixedViews, SmallViews, TrainViews, in_batches, readers
from spkd.errors import InputError


class Batch(NamedTuple):
    """What a training step is made of.

    Attributes:
        images: float32 in [0, 1], shape (b, c, image_size, image_size).
        targets: their classes, int64, shape (b,); where images are mixed the shares of all classes, float32, (b, k).
        shown: the same views at the teacher's size; ``images`` themselves where that is the same.
    """

    images: Tensor
    targets: Tensor
    shown: Tensor


class TrainStream:
    """Shuffled, augmented batches, the same for the same images, seed and epoch.

    Every epoch gives every image once, in an order of its own, unless ``draw`` says otherwise. Images in memory live on
    the device and are augmented there in batches: reflect padding by an eighth of the side, a random crop, a random
    flip. Others are read by worker processes: a random resized crop and a random flip of each. What ``augment`` does
    besides is done by these too, to images in memory as well. With ``turns`` each view is turned after that. With
    ``mixup`` each image of a batch is then mixed with the one before it, the first with the last, all of a batch by one
    share (Zhang et al., *mixup*, ICLR 2018).

    A last batch of fewer images is given too, unless it would be a single image, on which batch norm cannot
    train (with a batch size of 1 all are given).

    Args:
        images: the training images.
        image_size: side length of the images given.
        teacher_size: side length at which a teacher is shown the same views, ``image_size`` or more (None: that).
        flip: whether images may be mirrored.
        turns: whether they are turned, as :func:`~spkd.data.augment.draw_turns` says.
        crop_scale: least share of the area of an image in a file that a view shows, in (0, 1].
        augment: what else is done to them, as :func:`~spkd.data.augment.augmented` does it.
        mixup: alpha of the Beta(alpha, alpha) that these shares are drawn from; 0 mixes nothing.
        draw: how often images of a class come, as of :func:`~spkd.data.draws.drawn_images`; each time it
            is seen otherwise.
        classes: how many there are, which is only needed to mix them.
        batch_size: images in a batch.
        seed: of the order and the augmentation.
        device: where the batches are wanted.
        workers: processes that read files (0: this one, None: as is usual for the device, as
            :class:`~spkd.data.options.DataOptions` says); without effect on images in memory unless they are changed by
            ``augment``.
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
        turns: bool = False,
        crop_scale: float = CROP_SCALE,
        augment: Augment = "none",
        mixup: float = 0.0,
        draw: Draw = "plain",
        classes: int = 0,
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
        self._flip, self._turns = flip, turns
        self._crop_scale = crop_scale
        self._augment = augment
        self._mixup, self._draw, self._classes = mixup, draw, classes
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

    @property
    def readers(self) -> int | None:
        """How many processes make the views of images (0: this one); None where they are made on the device."""
        if isinstance(self._images, MemoryImages) and self._augment == "none":
            return None
        own = -(-self._batch_size // self._parts)
        return readers(self._workers, self._device, self.batches_per_epoch, own, self._sizes)

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
        drawn = drawn_images(self._images.targets, self._draw, generator)
        order = torch.randperm(len(drawn), generator=generator)
        batches = self._views(drawn, order, epoch, start)
        if self._turns:
            batches = self._turning(batches, self._parts_of(order.to(self._device), start), epoch)
        return self._mixing(batches, epoch, start) if self._mixup else batches

    def _views(self, drawn: Tensor, order: Tensor, epoch: int, start: int) -> Iterator[Batch]:
        """Iterate over the batches of the images that were drawn, in an order of their places, not mixed yet.

        What is seen of an image depends on its place among these, so that of several times each is another view.
        """
        if not isinstance(self._images, MemoryImages):
            images = self._images if self._draw == "plain" else self._images.select(drawn)
            views = TrainViews(images, self._sizes, self._flip, self._crop_scale, self._augment, self._seed, epoch)
            return self._from_workers(views, self._parts_of(order, start))
        # Drawn for the whole epoch: one transfer to the device, not four for each batch.
        margin = padding(self._crop_size)
        crops = draw_crops(len(order), margin, self._flip, mixed_seed(Use.CROPS, self._seed, epoch))
        if self._augment == "none":
            batches = self._parts_of(order.to(self._device), start)
            return self._from_memory(drawn.to(self._device), batches, crops.to(self._device))
        small = SmallViews(
            self._padded,
            self._targets,
            drawn,
            crops,
            self._crop_size,
            self._sizes,
            self._augment,
            self._seed,
            epoch,
        )
        return self._from_workers(small, self._parts_of(order, start))

    def _parts_of(self, order: Tensor, start: int) -> list[Tensor]:
        """Return this process's part of every batch from ``start`` on.

        Where images are mixed it begins with the one that its first is mixed with.
        """
        whole = _parts(order, self._batch_size)[start : self.batches_per_epoch]
        own = [torch.tensor_split(batch, self._parts)[self._part] for batch in whole]
        if not self._mixup:
            return own
        before = [torch.tensor_split(batch.roll(1), self._parts)[self._part][:1] for batch in whole]
        return [torch.cat(both) for both in zip(before, own, strict=True)]

    def _turning(self, batches: Iterator[Batch], parts: list[Tensor], epoch: int) -> Iterator[Batch]:
        turns = draw_turns(len(self._images), mixed_seed(Use.TURNS, self._seed, epoch)).to(self._device)
        for (images, targets, shown), indices in zip(batches, parts, strict=True):
            turned = turn_images(images, turns[indices])
            also = turned if shown is images else turn_images(shown, turns[indices])
            yield Batch(turned, targets, also)

    def _mixing(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        for number, (images, targets, shown) in enumerate(batches, start):
            share = draw_share(self._mixup, mixed_seed(Use.MIX, self._seed, epoch, number))
            mixed = mix_images(images, share)
            also = mixed if shown is images else mix_images(shown, share)
            yield Batch(mixed, mix_labels(targets, share, self._classes), also)

    def _from_workers(self, views: TrainViews | SmallViews, batches: list[Tensor]) -> Iterator[Batch]:
        for pixels, targets in in_batches(views, batches, self._device, self._workers):
            yield Batch(pixels[0], targets, pixels[-1])

    def _from_memory(self, drawn: Tensor, batches: list[Tensor], crops: Crops) -> Iterator[Batch]:
        several = _batches_at_once(self._device)
        for first in range(0, len(batches), several):
            together = batches[first : first + several]
            places = torch.cat(together)
            sizes = [len(batch) for batch in together]
            small = crop_views(self._padded, drawn[places], crops[places], self._crop_size)
            targets = self._targets[drawn[places]]
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
    part: tuple[int, int] = (0, 1),
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
        part: which of the batches are given, and among how many they are dealt out in turn.

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
    batches = _parts(torch.arange(len(images)), batch_size)[part[0] :: part[1]]
    if isinstance(images, MemoryImages):
        if view == "whole":
            return _whole_images(images, image_size, batches, device)
        workers = 0
    seen = in_batches(FixedViews(images, (image_size,), view), batches, device, workers)
    return ((views[0], targets) for views, targets in seen)


def _whole_images(
    images: MemoryImages, image_size: int, batches: Sequence[Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        part = slice(int(batch[0]), int(batch[-1]) + 1)  # which is not copied, as by indices
        pixels = images.pixels[part].to(device)
        yield to_unit_range(resize(pixels, image_size)), images.targets[part].to(device)


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
