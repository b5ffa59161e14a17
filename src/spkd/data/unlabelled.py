"""Images without a label, which a teacher tells a student about all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spkd.data.checked_files import open_files
from spkd.data.folder import find_files, note_of_others
from spkd.data.groups import Grouping
from spkd.data.images import FileImages, ImageData, Images, MemoryImages, joined
from spkd.data.twins import twins
from spkd.errors import InputError
from spkd.losses.objective import UNLABELLED


def with_unlabelled(
    data: ImageData, folder: Path, *, skip_bad_images: bool = False, grouping: Grouping | None = None
) -> ImageData:
    """Return the data with the images anywhere below ``folder`` as its unlabelled ones.

    They are read as the training images are. Where those are small ones in memory, these must have the same size.
    Images that are validation or test images too (the same pixels, of files the same content) are left out, and where
    there is a ``grouping`` of the labelled images, those of the same groups. One whose path tells no group stays.

    Raises:
        InputError: when there is no such folder, no image in it that is not left out, one that cannot be read, or one
            of another size.
    """
    if not folder.is_dir():
        raise InputError(f"unlabelled: no folder {folder}; give a folder with images at any depth")
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
    left_out, why = _left_out(images, files.paths, data, grouping, folder)
    fresh = [place for place in range(len(images)) if place not in left_out]
    if not fresh:
        of_groups = "" if grouping is None else ", or of groups of such"
        raise InputError(f"unlabelled: all images in {folder} are validation or test images{of_groups}; give others")
    if left_out:
        images = images.select(torch.tensor(fresh, dtype=torch.int64))
    notes = (*data.notes, *note_of_others(folder, found.others), *opened.notes, *why)
    return replace(data, unlabelled=images, notes=notes)


def _left_out(
    images: Images, paths: Sequence[str], data: ImageData, grouping: Grouping | None, folder: Path
) -> tuple[set[int], list[str]]:
    """Return the places of the images that are held out among the labelled ones, or are of their groups, and lines."""
    copies = twins(images, joined(data.val, data.test)).keys()
    notes = []
    if copies:
        notes.append(
            f"left out {len(copies)} of {len(images)} images without a label, which are validation or test images"
        )
    if grouping is None:
        return set(copies), notes
    held_out = {group for one in (data.val, data.test) for group in grouping.of(one.paths or ())}
    groups = replace(grouping, folder=folder).of(paths)
    related = {place for place, group in enumerate(groups) if group in held_out} - copies
    if related:
        notes.append(
            f"left out {len(related)} of {len(images)} images without a label, which belong to groups of validation "
            "or test images"
        )
    if None in groups:
        notes.append(
            f"{groups.count(None)} of {len(images)} images without a label belong to no group, the first: "
            f"{paths[groups.index(None)]}"
        )
    return related | copies, notes


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
