"""From image files with labels to a data set: opened, and with all sets, of which missing ones are cut from others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spkd.data.checked_files import open_files
from spkd.data.groups import Groups, note_of_parted, numbered
from spkd.data.images import FileImages, ImageData, Images, MemoryImages, channel_statistics, joined
from spkd.data.splits import Splits, complete_splits, require_enough
from spkd.data.twins import twins
from spkd.errors import InputError, some
from spkd.machine import is_follower

COMPARED = 20_000
"""Held-out images, at the most and evenly spread, of which it is looked whether they are training images too."""


@dataclass(frozen=True)
class LabelledFiles:
    """Image files that have labels, as a folder or a list gives them; nothing has been read of them yet.

    Attributes:
        place: the folder or the list.
        name: what the data set is called in records.
        classes: names of the classes, in order.
        sets: the images of ``train`` and, where they are given, of ``val`` and ``test``.
        groups: what tells which images belong together, None where each is by itself.
        advice: how the user can say which belong together.
        notes: what the user should be told of them.
    """

    place: Path
    name: str
    classes: tuple[str, ...]
    sets: Mapping[str, FileImages]
    groups: Groups | None
    advice: str
    notes: tuple[str, ...]


def with_targets(paths: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> FileImages:
    """Return image files of whose classes the names are known."""
    places = {name: place for place, name in enumerate(classes)}
    return FileImages(paths, torch.tensor([places[label] for label in labels], dtype=torch.int64))


def opened(files: LabelledFiles, *, skip_bad_images: bool, divided: bool) -> ImageData:
    """Return the data set that the files are, read as RGB, upright, whatever their mode.

    Every file is decoded once to see that it can be.

    Args:
        files: where they are, and their labels.
        skip_bad_images: leave out files that cannot be read instead of stopping.
        divided: whether sets that are missing are cut from the others (see
            :func:`spkd.data.splits.complete_splits`), of which no group is divided. Otherwise they stay empty.

    Raises:
        InputError: when a class has too few images or groups, a file cannot be read, none of a set or a class can, or
            an image is of no group.
    """
    classes, groups = files.classes, files.groups if divided else None
    if divided:
        # Before all files are decoded, after which there may be fewer. One that is left out need be of no group.
        early = None if groups is None or skip_bad_images else numbered(groups.of_sets(files.sets))
        require_enough({split: images.targets for split, images in files.sets.items()}, classes, early)
    parts, opened_notes = _open_sets(files.sets, skip_bad_images)
    _check_none_empty(files.place, parts["train"], classes)
    grouped = None if groups is None else groups.of_sets(parts)
    if divided:
        numbers = None if grouped is None else numbered(grouped)
        splits = complete_splits(parts["train"], parts.get("val"), parts.get("test"), classes, numbers)
    else:
        none = parts["train"].select(torch.zeros(0, dtype=torch.int64))
        splits = Splits(parts["train"], parts.get("val", none), parts.get("test", none), ())
    mean, std = channel_statistics(splits.train)
    return ImageData(
        name=os.fsencode(files.name).decode(errors="backslashreplace"),  # figures take nothing but UTF-8
        classes=classes,
        channels=3,
        train=splits.train,
        val=splits.val,
        test=splits.test,
        native_size=splits.train.size if isinstance(splits.train, MemoryImages) else None,
        flip=True,
        normalisation_mean=mean,
        normalisation_std=std,
        cut=len(splits.train) < len(parts["train"]),
        notes=(
            *files.notes,
            *opened_notes,
            *_missing_classes(parts, classes),
            *splits.notes,
            *(_note_of_cut(splits, files.advice) if grouped is None else note_of_parted(grouped)),
            *_note_of_copies(splits),
        ),
    )


def _note_of_cut(splits: Splits, advice: str) -> list[str]:
    """Return a line where sets were cut, which tears apart pictures that belong together."""
    line = f"these sets are cut image by image: where several show one object or patient, {advice}"
    return [line] if splits.notes else []


def _open_sets(sets: Mapping[str, FileImages], skip_bad: bool) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Open the files of all sets together, since they are kept in memory all or none."""
    paths = [path for images in sets.values() for path in images.paths]
    targets = [target for images in sets.values() for target in images.targets.tolist()]
    opened = open_files(paths, targets, skip_bad)
    parts: dict[str, Images] = {}
    first = 0
    for split, images in sets.items():
        last = first + len(images)
        inside = (opened.kept >= first) & (opened.kept < last)
        parts[split] = opened.images.select(torch.nonzero(inside).squeeze(1))
        first = last
    empty = next((split for split, images in parts.items() if not len(images)), None)
    if empty is not None:
        raise InputError(f"data: none of the {len(sets[empty])} images of the {empty} set can be read")
    return parts, (*opened.notes, *opened.notes_of_size)


def _missing_classes(parts: Mapping[str, Images], classes: tuple[str, ...]) -> list[str]:
    """Return a line for each given set, other than the training set, that lacks classes."""
    notes = []
    for split, title in (("val", "validation"), ("test", "test")):
        if split not in parts:
            continue
        counts = torch.bincount(parts[split].targets, minlength=len(classes)).tolist()
        missing = [repr(name) for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            many = f"{len(missing)} class{'' if len(missing) == 1 else 'es'}"
            notes.append(f"{title} set has no image of {many}: {some(missing, 5)}")
    return notes


def _note_of_copies(splits: Splits) -> list[str]:
    """Return a line where held-out images are training images too; of several processes one looks."""
    if is_follower():
        return []
    held_out = joined(splits.val, splits.test)
    if not len(held_out):
        return []
    every = -(-len(held_out) // COMPARED)
    few = held_out.select(torch.arange(0, len(held_out), every))
    copies = twins(few, splits.train)
    if not copies:
        return []
    place, learnt = next(iter(copies.items()))
    which = ""
    if few.paths is not None and splits.train.paths is not None:
        which = f" (the first: {few.paths[place]} is {splits.train.paths[learnt]})"
    return [
        f"warning: {len(copies)} of the {len(few)} validation and test images{' looked at' if every > 1 else ''} are "
        f"training images too{which}, so that errors are too low: keep one of each"
    ]


def _check_none_empty(place: Path, images: Images, classes: tuple[str, ...]) -> None:
    counts = torch.bincount(images.targets, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(f"data: no training image of class {name!r} in {place} can be read; add some or remove it")
