"""Labelled images as the rest of the package sees them, in memory or as files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.decoding import file_size, look_into, map_files, read_image
from spkd.data.options import CROP_SCALE, Augment, Draw, View
from spkd.errors import InputError

READ_FILES = 64
"""Of how many files, at least, the content goes into a fingerprint."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Square images of one size, held in memory.

    Args:
        pixels: uint8, shape (n, channels, size, size).
        targets: class of each, int64, shape (n,).
        paths: the file that each was read from, None where there are none.

    Raises:
        InputError: when shapes or types are others.
    """

    pixels: Tensor
    targets: Tensor
    paths: Sequence[str] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
            raise InputError(
                f"pixels: expected uint8 of shape (n, channels, size, size), got {self.pixels.dtype} "
                f"of shape {shape}; images of other shapes can be given as FileImages"
            )
        _check_targets(self.targets, shape[0])

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def size(self) -> int:
        """Side length in pixels."""
        return self.pixels.shape[3]

    def image(self, index: int, side: int | None = None) -> Tensor:
        """Return one image, always as it is stored: uint8, shape (channels, size, size)."""
        return self.pixels[index]

    def select(self, indices: Tensor) -> MemoryImages:
        """Return the images at ``indices`` (int64, shape (m,)), in that order, copied."""
        paths = None if self.paths is None else [self.paths[place] for place in indices.tolist()]
        return MemoryImages(self.pixels[indices], self.targets[indices], paths)

    def relabelled(self, targets: Tensor) -> MemoryImages:
        """Return the same images with other targets."""
        return MemoryImages(self.pixels, targets, self.paths)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images of any size and mode, read from files when they are asked for.

    Args:
        paths: one file for each image.
        targets: class of each, int64, shape (n,).
        channels: 3 for colour, 1 for grey; every image is converted to it.

    Raises:
        InputError: when there are not as many targets as paths, or channels is neither 1 nor 3.
    """

    paths: Sequence[str]
    targets: Tensor
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"channels: expected 1 (grey) or 3 (colour), got {self.channels}")
        _check_targets(self.targets, len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int, side: int | None = None) -> Tensor:
        """Return one image: uint8, shape (channels, h, w), upright; InputError when it cannot be read.

        It is read as :func:`~spkd.data.decoding.read_image` does, perhaps smaller than it is where no more than
        ``side`` pixels of its shorter side are needed.
        """
        return read_image(self.paths[index], self.channels, side)

    def select(self, indices: Tensor) -> FileImages:
        """Return the images at ``indices`` (int64, shape (m,)), in that order."""
        return FileImages([self.paths[i] for i in indices.tolist()], self.targets[indices], self.channels)

    def relabelled(self, targets: Tensor) -> FileImages:
        """Return the same images with other targets."""
        return FileImages(self.paths, targets, self.channels)


Images = MemoryImages | FileImages
"""Labelled images that can be had one by one."""


@dataclass(frozen=True)
class ImageData:
    """A data set with its splits, and what training must know of it.

    Args:
        name: what it is called in records.
        classes: names of the classes; a target is a place in it.
        channels: of the images, 1 or 3.
        train: images to learn from.
        val: images to choose by.
        test: images for the one evaluation at the end.
        unlabelled: images without a label to learn from besides, by what a teacher says of them.
        native_size: side length in pixels when the images are small and alike, else None.
        flip: whether an image and its mirror image are of one class.
        turns: whether training images are turned by multiples of 90 degrees.
        crop_scale: least share of an image's area that a training view shows, where images are not small and alike.
        augment: what else is done to training images.
        mixup: alpha of the share by which training images are mixed, 0 where they are not.
        draw: how often images of a class come in an epoch.
        chosen_view: what is to be seen of an image in evaluation, None where nothing was said.
        normalisation_mean: mean of each channel, of pixels in [0, 1].
        normalisation_std: standard deviation of each channel, of pixels in [0, 1].
        cut: whether validation or test images were cut from a folder's training images.
        notes: what the user should be told: what was split off, what was left out.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    train: Images
    val: Images
    test: Images
    native_size: int | None
    flip: bool
    normalisation_mean: tuple[float, ...]
    normalisation_std: tuple[float, ...]
    cut: bool = False
    notes: tuple[str, ...] = ()
    unlabelled: Images | None = None
    crop_scale: float = CROP_SCALE
    augment: Augment = "none"
    mixup: float = 0.0
    draw: Draw = "plain"
    turns: bool = False
    chosen_view: View | None = None

    @property
    def view(self) -> View:
        """What is seen of an image in evaluation; where nothing was said, as :func:`usual_view`."""
        return self.chosen_view or usual_view(self.train)

    def seen(self) -> Images:
        """Return the images that a student is trained on: those with a label, then those without."""
        return self.train if self.unlabelled is None else joined(self.train, self.unlabelled)

    def in_grey(self) -> ImageData:
        """Return the same data with images of one channel."""
        if self.channels == 1:
            return self
        train, val, test = in_grey(self.train), in_grey(self.val), in_grey(self.test)
        mean, std = channel_statistics(train)
        return replace(
            self, channels=1, train=train, val=val, test=test, normalisation_mean=mean, normalisation_std=std
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which images are in which split and class, the unlabelled ones left out.

        Of images in memory it is of their pixels, of files of their names and sizes and of a few ones' content. A file
        that cannot be looked into raises UnreadableImage: without it the hash would be another.
        """
        return _fingerprint(repr(self.classes), {"train": self.train, "val": self.val, "test": self.test})

    @cached_property
    def unlabelled_fingerprint(self) -> str | None:
        """The same of the unlabelled images, None where there are none."""
        return None if self.unlabelled is None else _fingerprint("", {"unlabelled": self.unlabelled})


def _fingerprint(beginning: str, splits: Mapping[str, Images]) -> str:
    digest = hashlib.sha256(beginning.encode())
    files = [path for images in splits.values() if isinstance(images, FileImages) for path in images.paths]
    # Of the first and the last in order, which is that of all, in less time and memory.
    root = os.path.commonpath([min(files), max(files)]) if files else ""
    for path in files[:: max(1, len(files) // READ_FILES)]:
        digest.update(look_into(path, Path.read_bytes))
    for name, images in splits.items():
        digest.update(f"{name} {images.targets.tolist()}".encode())
        if isinstance(images, FileImages):
            sizes = map_files(lambda path: look_into(path, file_size), images.paths)
            named = (repr((os.path.relpath(path, root), size)) for path, size in zip(images.paths, sizes, strict=True))
            digest.update(f"[{', '.join(named)}]".encode())
        else:
            digest.update(images.pixels.contiguous().numpy().data)
    return digest.hexdigest()


def usual_view(images: Images) -> View:
    """Return what is seen of images in evaluation where nothing is said: those in memory whole, of others the centre.

    >>> usual_view(MemoryImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0])))
    'whole'
    """
    return "whole" if isinstance(images, MemoryImages) else "centre"


def joined(first: Images, second: Images) -> Images:
    """Return the images of one kind, in memory or in files, one after another."""
    targets = torch.cat([first.targets, second.targets])
    if isinstance(first, MemoryImages) and isinstance(second, MemoryImages):
        paths = None if first.paths is None or second.paths is None else [*first.paths, *second.paths]
        return MemoryImages(torch.cat([first.pixels, second.pixels]), targets, paths)
    if isinstance(first, FileImages) and isinstance(second, FileImages):
        return FileImages([*first.paths, *second.paths], targets, first.channels)
    raise TypeError(f"images of one kind can be joined, not {type(first).__name__} and {type(second).__name__}")


def in_grey(images: Images) -> Images:
    """Return the images with one channel, the luma of ITU-R 601 as Pillow rounds it; grey ones as they are.

    >>> colours = torch.tensor([[255, 0, 0], [7, 7, 7]], dtype=torch.uint8).view(2, 3, 1, 1)
    >>> in_grey(MemoryImages(colours, torch.tensor([0, 1]))).image(0).item()
    76
    """
    if isinstance(images, FileImages):
        return FileImages(images.paths, images.targets, channels=1)
    if images.pixels.shape[1] == 1:
        return images
    red, green, blue = (channel.int() for channel in images.pixels.unbind(1))
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return MemoryImages(luma.to(torch.uint8).unsqueeze(1), images.targets, images.paths)


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1].

    Of images in memory they are computed (exactly, from counts of the 256 values); reading every file
    for them would cost an epoch, so images in files get ImageNet's.

    >>> halves = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(2).view(1, 1, 2, 2)
    >>> channel_statistics(MemoryImages(halves, torch.tensor([0])))
    ((0.5,), (0.5,))
    """
    if not isinstance(images, MemoryImages):
        return IMAGENET_MEAN, IMAGENET_STD
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.pixels.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        shares = counts / counts.sum()
        mean = (shares * values).sum()
        means.append(round(mean.item(), 4))
        # A constant channel would otherwise be divided by zero.
        deviations.append(max(round((shares * (values - mean) ** 2).sum().sqrt().item(), 4), 1e-3))
    return tuple(means), tuple(deviations)


def _check_targets(targets: Tensor, images: int) -> None:
    if targets.dtype != torch.int64 or tuple(targets.shape) != (images,):
        raise InputError(
            f"targets: expected int64 of shape ({images},), one class per image, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
