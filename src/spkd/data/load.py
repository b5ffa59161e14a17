"""From what a user says to images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from spkd.data.digits import load_digits
from spkd.data.folder import load_folder
from spkd.data.groups import Grouping
from spkd.data.images import ImageData
from spkd.data.kept import kept
from spkd.data.options import DataOptions
from spkd.data.splits import hold_out
from spkd.data.unlabelled import with_unlabelled
from spkd.data.vision_sets import DEFAULT_ROOT, VISION_SETS, load_vision_set
from spkd.errors import InputError, nearest
from spkd.files import is_folder, is_there, names_beside
from spkd.imports import split_arguments


def load_data(options: DataOptions, unlabelled: str | None = None, *, divided: bool = True) -> ImageData:
    """Find and load the images that the options name, and those of the folder ``unlabelled``.

    ``digits`` and torchvision's names go before folders of the same name; ``./name`` is always a folder.
    Other spellings of the names (``CIFAR-10``) do where there is no such folder. A folder is looked for in
    the working folder, then in ``data_root``. A torchvision set's name may have arguments, as in
    ``dtd?partition=3``. With ``divided`` false, sets that a folder lacks are not cut from its training images.

    Raises:
        InputError: when there is no such set or folder, it cannot be used, it is no folder though groups are asked for,
            or it has fewer training images than are asked for; see :func:`spkd.data.folder.load_folder` and
            :func:`spkd.data.vision_sets.load_vision_set`.
    """
    # At which size they will be seen does not matter here.
    options = replace(options, image_size=None)
    return kept((options, divided), _load) if unlabelled is None else kept((options, unlabelled), _load_both)


def _load_both(named: tuple[DataOptions, str]) -> ImageData:
    options, unlabelled = named
    data = load_data(options)
    return with_unlabelled(
        data,
        Path(unlabelled).expanduser(),
        skip_bad_images=options.skip_bad_images,
        grouping=None if options.groups is None else Grouping(options.groups, _find_folder(options)),
    )


def _load(named: tuple[DataOptions, bool]) -> ImageData:
    options, divided = named
    data = _load_whole(options, divided)
    if options.grey:
        data = data.in_grey()
    if options.train_images is not None:
        data = _with_fewer(data, options.train_images)
    return replace(
        data,
        flip=data.flip and not options.no_flip,
        turns=options.turns,
        crop_scale=options.crop_scale,
        augment=options.augment,
        mixup=options.mixup,
        draw=options.draw,
        chosen_view=options.view,
    )


def _load_whole(options: DataOptions, divided: bool) -> ImageData:
    named = named_set(options)
    if named is None:
        return load_folder(
            _find_folder(options), skip_bad_images=options.skip_bad_images, divided=divided, groups=options.groups
        )
    name, arguments = named
    if options.groups is not None:
        raise InputError(f"groups: {name} is no folder of files whose paths tell groups of images; leave it out")
    if name == "digits":
        data = load_digits()
    else:
        root = Path(options.data_root or DEFAULT_ROOT).expanduser()
        data = load_vision_set(
            name, root, arguments=arguments, download=options.download, skip_bad_images=options.skip_bad_images
        )
    if is_folder(options.data):
        note = f"{name} is the set of that name and not the folder {name} here; for that say --data ./{name}"
        data = replace(data, notes=(note, *data.notes))
    return data


def named_set(options: DataOptions) -> tuple[str, Mapping[str, object]] | None:
    """Return name and arguments of the set that is meant, None where a folder is.

    >>> named_set(DataOptions("CIFAR-10")), named_set(DataOptions("./cifar10"))
    (('cifar10', {}), None)
    """
    if options.is_digits:
        return "digits", {}
    if is_folder(options.data):
        return (options.data, {}) if options.data in VISION_SETS else None
    name, arguments = split_arguments(options.data)
    name = name.lower().replace("-", "").replace("_", "")
    return (name, arguments) if name in VISION_SETS else None


def _with_fewer(data: ImageData, count: int) -> ImageData:
    """Return the data with ``count`` of the training images, stratified, the same at every call."""
    total = len(data.train)
    if count == total:
        return data
    if not len(data.classes) <= count <= total - len(data.classes):
        raise InputError(
            f"train_images: expected from {len(data.classes)} to {total - len(data.classes)} of the {total} training "
            f"images of {data.name}, which has {len(data.classes)} classes, got {count}"
        )
    counts = torch.bincount(data.train.targets, minlength=len(data.classes))
    if int(counts.min()) < 2:
        name = data.classes[int(counts.argmin())]
        raise InputError(
            f"train_images: class {name!r} of {data.name} has fewer than two training images; leave the option out"
        )
    _, chosen = hold_out(data.train.targets, count, data.classes)
    note = f"training set: {len(chosen)} of the {total} images, chosen by a fixed seed, stratified by class"
    return replace(data, train=data.train.select(chosen), notes=(*data.notes, note))


def _find_folder(options: DataOptions) -> Path:
    candidates = [Path(options.data).expanduser()]
    if options.data_root is not None:
        candidates.append(Path(options.data_root).expanduser() / options.data)
    for candidate in candidates:
        if is_folder(candidate):
            return candidate
        if is_there(candidate):
            raise InputError(
                f"data: expected a folder, got the file {candidate}; unpack it if it is an archive. Of a list of files "
                "and labels make a folder for each class and put the images, or links to them, into it"
            )
    looked = " and ".join(str(candidate.resolve()) for candidate in candidates)
    if os.sep in options.data:
        hint = nearest(candidates[0].name, names_beside(candidates[0]))
        raise InputError(f"data: no folder {looked}; check the path{hint and f'.{hint}'}")
    known = ["digits", *VISION_SETS, *names_beside(candidates[0])]
    raise InputError(
        f"data: {options.data!r} is neither a known data set nor a folder (looked for {looked})."
        f"{nearest(options.data, known)} Known sets: digits, {', '.join(VISION_SETS)}"
    )
