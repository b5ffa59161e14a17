"""Which images to use, as a user says it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from spkd.errors import InputError
from spkd.files import is_folder

View = Literal["whole", "centre"]
"""What is seen of a large image in evaluation: the whole, squeezed to a square, or a square out of its middle."""

Augment = Literal["none", "trivial", "rand"]
"""What is done to training images besides crops and mirror images: nothing, TrivialAugment or RandAugment."""

Draw = Literal["plain", "sqrt", "balanced"]
"""How often a class's images come in an epoch: by their number, by its square root, or as often as any other's."""

LARGEST_SIZE = 4096
"""Greatest side length, in pixels, at which images are shown to a network."""

CROP_SCALE = 0.35
"""Least share of a large image's area that a training view shows, where none is said."""


@dataclass(frozen=True)
class DataOptions:
    """Which images to use, and how to read them.

    Args:
        data: 'digits' (embedded), a torchvision set by name (cifar10, dtd, dtd?partition=3, ...), a folder of images,
            or a CSV file of paths and labels, names of its columns as in 'labels.csv?path=file&label=diagnosis'.
        data_root: folder that holds torchvision's sets, and in which a folder or CSV file given by --data is looked for
            too (default: ./data for torchvision's sets).
        image_size: side length in pixels at which the networks see images (default: from the weights or the images).
        no_flip: do not mirror training images, for classes that mirroring changes, such as letters or left and right
            (default: each is mirrored half the time, except the digits and torchvision's sets of digits, letters and
            traffic signs).
        turns: also turn training images by 0, 90, 180 or 270 degrees, all equally likely, for pictures without a right
            way up, such as aerial and microscope images or parts on a belt; with mirror images, eight orientations.
        grey: read colour images as grey, for networks with one channel (automatic for a trained one).
        crop_scale: smallest share of a large image's area that a training crop shows; 1 for the whole image, squeezed
            to a square. If all images are small squares of one size, they are shifted by up to an eighth instead.
        augment: further random changes of training images: trivial (TrivialAugment: one of fourteen changes of colour,
            sharpness or shape, of any strength), rand (RandAugment: two of these, each weaker), or none.
        mixup: mix every training image, and its label, with another of its batch, in a proportion drawn from
            Beta(MIXUP, MIXUP); with 1 all proportions are equally likely, with 0 nothing is mixed.
        draw: how often images of each class come in an epoch, whose length stays the same: plain (each image once),
            balanced (all classes equally often), or sqrt (by the square root of their number of images).
        groups: keep images that belong together, such as those of one patient, object or video, in one of the sets that
            are cut: a regular expression that is searched for in each image's path below the folder; what is in
            parentheses, or without any all that it matches, names the group, as in '(patient[0-9]+)' or
            '([^/]+)_[0-9]+[.]png$' (default: a CSV file's column group, otherwise each image by itself).
        view: what evaluation shows of a large image: centre (the shorter side resized to 8/7 of the image size, the
            middle cut out), or whole, squeezed to a square (default: as a trained network was made to see them,
            otherwise centre, but the whole of small squares).
        download: download a torchvision set that is missing.
        train_images: use only so many of the training images, always the same ones, with each class's share kept
            (default: all).
        skip_bad_images: leave out images that cannot be read, and count them, instead of stopping.
        workers: number of processes that read image files, or augment images in memory; it does not change the batches
            (default: for a GPU the number of processors, up to 16; for a CPU, or if OMP_NUM_THREADS is set, the number
            of compute threads, from 2 to 8, but no more than there are processors).
    """

    data: str = "digits"
    data_root: str | None = None
    image_size: int | None = None
    train_images: int | None = None
    groups: str | None = None
    no_flip: bool = False
    turns: bool = False
    grey: bool = False
    crop_scale: float = CROP_SCALE
    augment: Augment = "none"
    mixup: float = 0.0
    draw: Draw = "plain"
    view: View | None = None
    download: bool = False
    skip_bad_images: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data: expected 'digits', a data set's name, a folder or a CSV file, got an empty text")
        if self.image_size is not None and not 2 <= self.image_size <= LARGEST_SIZE:
            expected = f"a side length from 2 to {LARGEST_SIZE} pixels"
            raise InputError(f"image_size: expected {expected}, got {self.image_size}")
        if self.train_images is not None and self.train_images < 2:
            raise InputError(f"train_images: expected 2 images or more, got {self.train_images}")
        if self.groups is not None:
            _check_expression(self.groups)
        if not 0 < self.crop_scale <= 1:
            raise InputError(f"crop_scale: expected a share above 0 and up to 1, got {self.crop_scale:g}")
        if self.augment not in get_args(Augment):
            raise InputError(f"augment: expected {', '.join(get_args(Augment))}, got {self.augment!r}")
        if not (math.isfinite(self.mixup) and self.mixup >= 0):
            raise InputError(f"mixup: expected 0 or a finite number above it, got {self.mixup:g}; try 1")
        if self.draw not in get_args(Draw):
            raise InputError(f"draw: expected {', '.join(get_args(Draw))}, got {self.draw!r}")
        if self.view not in (None, "whole", "centre"):
            raise InputError(f"view: expected 'whole' or 'centre', got {self.view!r}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers: expected 0 or more processes, got {self.workers}")

    @property
    def is_digits(self) -> bool:
        """Whether the embedded digits are meant; of a folder of that name ``./digits`` tells."""
        return self.data == "digits" or (self.data.lower() == "digits" and not is_folder(self.data))


def _check_expression(groups: str) -> None:
    try:
        re.compile(groups)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"groups: expected a regular expression, got {groups!r}: {error}") from error
