"""Images without a label, which a teacher tells a student about all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.checked_files import open_files
from spkd.data.folder import find_files, note_of_others
from spkd.data.images import FileImages, ImageData, Images, MemoryImages, joined
from spkd.data.twins import twins
from spkd.errors import InputError
from spkd.losses.objective import UNLABELLED


def with_unlabelled(data: ImageData, folder: Path, *, skip_bad_images: bool = False) -> ImageData:
    """Return the data with the images anywhere below ``folder`` as its unlabelled ones.

    They are read as the training images are. Where those are small ones in memory, these must have the same size.
    Images that are validation or test images too (the same pixels, of files the same content) are left out.

    Raises:
        InputError: when there is no such folder, no image in it that is not left out, one that cannot be read, or one
            of another size.
    """
    if not folder.is_dir():
        raise InputError(f"unlabelled: no folder {folder}; give one of images, which may lie in folders of their own")
    found = find_files(folder)
    paths = found.images
    if not paths:
        raise InputError(f"unlabelled: no image in {folder}")
    opened = open_files(paths, [UNLABELLED] * len(paths), skip_bad_images)
    files = FileImages([paths[place] for place in opened.kept.tolist()], opened.images.targets, data.channels)
    images: Images = files
    if isinstance(data.train, MemoryImages):
        images = opened.images
        if not isinstance(images, MemoryImages) or images.pixels.shape[1:] != data.train.pixels.shape[1:]:
            images = MemoryImages(_read(files, data.train.size), files.targets)
    held_out = twins(images, joined(data.val, data.test))
    fresh = [place for place in range(len(images)) if place not in held_out]
    notes = [*data.notes, *note_of_others(folder, found.others), *opened.notes]
    if len(fresh) < len(images):
        notes.append(
            f"left out {len(images) - len(fresh)} of {len(images)} images without a label, which are validation or "
            "test images"
        )
        images = images.select(torch.tensor(fresh, dtype=torch.int64))
    if not fresh:
        raise InputError(f"unlabelled: all images in {folder} are validation or test images; give others")
    return replace(data, unlabelled=images, notes=tuple(notes))


def _read(files: FileImages, size: int) -> Tensor:
    """Return all the images; an InputError for one that is not a square of this size."""
    pixels = []
    for place, path in enumerate(files.paths):
        image = files.image(place)
        height, width = image.shape[1:]
        if (height, width) != (size, size):
            raise InputError(
                f"unlabelled: the training images are of {size} × {size} pixels, {path} is of {width} × {height}; give "
                "images of that size"
            )
        pixels.append(image)
    return torch.stack(pixels)
