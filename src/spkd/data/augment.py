"""Random views of training images, and the fixed view for evaluation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

from spkd.data.options import Augment, View

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest width / height of a training view."""
FINE = 3
"""How many pixels of an image in a file, each way, there are at least to one of its view where it is not read whole."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Where the views of n padded images lie.

    Args:
        top: first row in pixels, int64, shape (n,).
        left: first column in pixels, int64, shape (n,).
        mirrored: which are mirrored, bool, shape (n,).
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor

    def to(self, device: torch.device) -> Crops:
        """Return the same on another device."""
        return Crops(self.top.to(device), self.left.to(device), self.mirrored.to(device))

    def __getitem__(self, indices: Tensor) -> Crops:
        return Crops(self.top[indices], self.left[indices], self.mirrored[indices])


def augmentation(flip: bool, crop_scale: float, augment: Augment, in_files: bool) -> str:
    """Return what is done to training images, in words: another text wherever the views of a seed are others.

    >>> augmentation(flip=True, crop_scale=0.35, augment="none", in_files=False)
    'reflect pad 1/8 and crop, or resized crop of 0.35 to 1 and flip'
    >>> augmentation(flip=False, crop_scale=0.35, augment="rand", in_files=True)
    'reflect pad 1/8 and crop, or resized crop of 0.35 to 1, JPEGs decoded at 3 pixels to one, rand'
    """
    done = f"reflect pad 1/8 and crop, or resized crop of {crop_scale:g} to 1{' and flip' if flip else ''}"
    decoded = f", JPEGs decoded at {FINE} pixels to one" if in_files else ""
    return f"{done}{decoded}{'' if augment == 'none' else f', {augment}'}"


def padding(size: int) -> int:
    """Return the margin that an image gets on each side: 4 pixels for 32 as usual on CIFAR, 1 for 8."""
    return size // 8


def draw_crops(count: int, margin: int, flip: bool, seed: int) -> Crops:
    """Draw a view for each of ``count`` images.

    Every offset in [0, 2 margin] is as likely as another; one view in two is mirrored, none without ``flip``.

    The numbers come from the CPU's generator, so that they are the same whatever device the images are on.
    """
    generator = torch.Generator().manual_seed(seed)
    top, left = torch.randint(0, 2 * margin + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return Crops(top, left, mirrored & flip)


def draw_turns(count: int, seed: int) -> Tensor:
    """Draw by how many quarters each of ``count`` images is turned: from 0 to 3, each as likely, int64, (count,)."""
    return torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed))


def turn_images(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each of (b, c, size, size) images to the left by so many quarters, 0 to 3, (b,): as ``torch.rot90`` does.

    >>> images = torch.arange(4).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    >>> turn_images(images, torch.tensor([0, 1])).flatten(1)
    tensor([[0, 1, 2, 3],
            [1, 3, 0, 2]])
    """
    # Pixel by pixel, since how many are turned how far is not known without waiting for the device.
    size = images.shape[-1]
    places = torch.arange(size**2, device=images.device).view(size, size)
    sources = torch.stack([places.rot90(quarters) for quarters in range(4)]).flatten(1)[turns]
    return images.flatten(2).gather(2, sources.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)


def draw_share(alpha: float, seed: int) -> float:
    """Return how much of a mixed image is its own, from Beta(``alpha``, ``alpha``), in whole 256ths.

    These, and what is left to 1, no half precision rounds.

    >>> draw_share(1.0, 0) * 256 == round(draw_share(1.0, 0) * 256)
    True
    """
    return round(256 * random.Random(seed).betavariate(alpha, alpha)) / 256


def mix_images(images: Tensor, share: float) -> Tensor:
    """Mix each of (b + 1, ...) images but the first with the one before it, of which 1 - ``share`` is seen."""
    return torch.lerp(images[:-1], images[1:], share)


def mix_labels(targets: Tensor, share: float, classes: int) -> Tensor:
    """Return the classes' shares in images that are mixed so.

    Args:
        targets: of b + 1 images, int64; one below 0 is no label.
        share: of each image's own.
        classes: how many there are, k.

    Returns:
        float32, (b, k), which add up to 1 in each row where both images have a label.

    >>> mix_labels(torch.tensor([2, 0, 0]), 0.75, 3)
    tensor([[0.7500, 0.0000, 0.2500],
            [1.0000, 0.0000, 0.0000]])
    """
    labels = targets.unsqueeze(1) == torch.arange(classes, device=targets.device)
    return mix_images(labels.float(), share)


def pad_reflect(pixels: Tensor, margin: int) -> Tensor:
    """Pad (n, c, h, w) on each side with its mirror image, the border itself not repeated; any dtype."""
    if margin == 0:
        return pixels
    for dim in (2, 3):
        inner = pixels.narrow(dim, 1, margin).flip(dim)
        outer = pixels.narrow(dim, pixels.shape[dim] - 1 - margin, margin).flip(dim)
        pixels = torch.cat([inner, pixels, outer], dim)
    return pixels


def crop_views(padded: Tensor, indices: Tensor, crops: Crops, size: int) -> Tensor:
    """Cut each image's view out of the padded images.

    Args:
        padded: uint8, shape (n, c, size + 2 margin, size + 2 margin).
        indices: which images, int64, shape (b,).
        crops: their views, of shape (b,).
        size: side length of a view.

    Returns:
        uint8, shape (b, c, size, size).
    """
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    views = windows[indices, :, crops.top, crops.left]
    # A choice by bit masks: torch.where on bytes takes five times as long on a CPU.
    mask = (crops.mirrored.to(torch.uint8) * 255).view(-1, 1)
    difference = views.flip(-1).bitwise_xor_(views).flatten(1).bitwise_and_(mask)
    return difference.view_as(views).bitwise_xor_(views)


def resizing() -> ModuleType:
    """Return torchvision's functions, imported at the first call, since that takes a second."""
    from torchvision.transforms.v2 import functional

    return cast(ModuleType, functional)


def random_resized_crop(image: Tensor, size: int, flip: bool, seed: int, scale: float) -> Tensor:
    """Return a random part of an image, resized to ``size`` x ``size`` and mirrored one time in two.

    The part's area is uniform in [``scale``, 1] of the image's, its aspect log-uniform in ``ASPECT``; where
    ten draws do not fit into the image, the largest centred part of an allowed aspect. With a scale of 1 it is the
    whole image, whatever its aspect.

    Args:
        image: uint8, shape (c, h, w).
        size: side length of the view.
        flip: whether it may be mirrored.
        seed: the view is a function of the image and the numbers alone.
        scale: least share of the image's area, in (0, 1].

    Returns:
        uint8, shape (c, size, size).
    """
    numbers = random.Random(seed)
    top, left, height, width = _draw_part(image.shape[1], image.shape[2], numbers, scale)
    view: Tensor = resizing().resized_crop(image, top, left, height, width, [size, size], antialias=True)
    return view.flip(-1) if flip and numbers.random() < 0.5 else view


def augmented(view: Tensor, augment: Augment, seed: int) -> Tensor:
    """Return a training view with what ``augment`` does to it besides, as torchvision does it.

    ``trivial`` is TrivialAugment (Müller & Hutter 2021, the wide space): one of fourteen changes, of a strength drawn
    evenly. ``rand`` is RandAugment (Cubuk et al. 2020): two changes in turn, each of 9 of 30 parts of its range.

    Args:
        view: uint8, shape (c, size, size), of 1 or 3 channels.
        augment: which.
        seed: the result is a function of the view and the numbers alone.

    Returns:
        uint8, of the same shape.
    """
    if augment == "none":
        return view
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        changed: Tensor = _transform(augment)(view)
    return changed


@cache
def _transform(augment: Augment) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    transform: Callable[[Tensor], Tensor] = v2.TrivialAugmentWide() if augment == "trivial" else v2.RandAugment()
    return transform


def side_for_crop(size: int, scale: float) -> int:
    """Return how many pixels an image's shorter side must have for ``FINE`` to one in every random view of it.

    >>> side_for_crop(128, scale=0.35), side_for_crop(128, scale=1)
    (750, 384)
    """
    return math.ceil(FINE * size / (1 if scale == 1 else math.sqrt(scale * ASPECT[0])))


def side_for_view(size: int, view: View) -> int:
    """Return how many pixels an image's shorter side must have for ``FINE`` to one in the view for evaluation.

    >>> side_for_view(128, "centre"), side_for_view(128, "whole")
    (438, 384)
    """
    return FINE * (size if view == "whole" else shorter_side(size))


def shorter_side(size: int) -> int:
    """Return the shorter side of an image from which the centre, ``size`` x ``size``, is cut: 8/7 of that."""
    return round(size * 8 / 7)


def fixed_view(image: Tensor, size: int, view: View) -> Tensor:
    """Return an image as it is evaluated: whole, or its centre after its shorter side was resized to 8/7 of that.

    Args:
        image: uint8, shape (c, h, w).
        size: side length of the view.
        view: which.

    Returns:
        uint8, shape (c, size, size).
    """
    if view == "whole":
        return resize(image, size)
    transforms = resizing()
    resized: Tensor = transforms.resize(image, [shorter_side(size)], antialias=True)
    centre: Tensor = transforms.center_crop(resized, [size, size])
    return centre


def resize(pixels: Tensor, size: int) -> Tensor:
    """Resize images (..., h, w) to ``size`` x ``size``, bilinear with antialiasing; uint8 in and out."""
    if tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    transforms = resizing()
    # In parts, since float32 copies of a whole set may not fit.
    parts = [transforms.resize(part, [size, size], antialias=True) for part in torch.split(pixels, 1024)]
    return torch.cat(parts)


def to_unit_range(pixels: Tensor) -> Tensor:
    """Return uint8 as float32 in [0, 1]."""
    # Not divided: GPUs multiply by the reciprocal where CPUs divide, and the last bits would differ.
    return pixels.float().mul_(1 / 255)


def _draw_part(height: int, width: int, numbers: random.Random, scale: float) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part."""
    if scale == 1:
        return 0, 0, height, width
    for _ in range(10):
        area = height * width * numbers.uniform(scale, 1)
        aspect = math.exp(numbers.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        part_width = round(math.sqrt(area * aspect))
        part_height = round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            top = numbers.randint(0, height - part_height)
            left = numbers.randint(0, width - part_width)
            return top, left, part_height, part_width
    part_width = max(min(width, round(height * ASPECT[1])), 1)
    part_height = max(min(height, round(width / ASPECT[0])), 1)
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width
