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
from spkd.data.list_spec import ListSpec, list_named
from spkd.data.lists import load_list, paths_begin
from spkd.data.options import DataOptions
from spkd.data.splits import hold_out
from spkd.data.unlabelled import with_unlabelled
from spkd.data.vision_sets import DEFAULT_ROOT, VISION_SETS, load_vision_set
from spkd.errors import InputError, nearest
from spkd.files import is_file, is_folder, is_there, names_beside
from spkd.imports import split_arguments


def load_data(options: DataOptions, unlabelled: str | None = None, *, divided: bool = True) -> ImageData:
    """Find and load the images that the options name, and those of the folder ``unlabelled``.

    ``digits`` and torchvision's names go before folders of the same name; ``./name`` is always a folder.
    Other spellings of the names (``CIFAR-10``) do where there is no such folder. A folder, or a list that ends in
    ``.csv`` or ``.tsv`` and may have arguments (``labels.csv?label=diagnosis``), is looked for in the working folder,
    then in ``data_root``. A torchvision set's name may have arguments, as in ``dtd?partition=3``. With ``divided``
    false, sets that a folder or list lacks are not cut from its training images.

    Raises:
        InputError: when there is no such set, folder or list, it cannot be used, it is a set though groups are asked
            for, or it has fewer training images than are asked for; see :func:`spkd.data.folder.load_folder`,
            :func:`spkd.data.lists.load_list` and :func:`spkd.data.vision_sets.load_vision_set`.
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
        grouping=_grouping(options),
    )


def _grouping(options: DataOptions) -> Grouping | None:
    """Return what tells from their paths which labelled images belong together."""
    if options.groups is None:
        return None
    place, listed = _find_own(options)
    return Grouping(options.groups, place if listed is None else paths_begin(listed, place))


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
        return _load_own(options, divided)
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


def _load_own(options: DataOptions, divided: bool) -> ImageData:
    place, listed = _find_own(options)
    skip, groups = options.skip_bad_images, options.groups
    if listed is None:
        return load_folder(place, skip_bad_images=skip, divided=divided, groups=groups)
    return load_list(listed, place, skip_bad_images=skip, divided=divided, groups=groups)


def named_set(options: DataOptions) -> tuple[str, Mapping[str, object]] | None:
    """Return name and arguments of the set that is meant, None where a folder or a list is.

    >>> named_set(DataOptions("CIFAR-10")), named_set(DataOptions("./cifar10")), named_set(DataOptions("cifar10.csv"))
    (('cifar10', {}), None, None)
    """
    if options.is_digits:
        return "digits", {}
    if is_folder(options.data):
        return (options.data, {}) if options.data in VISION_SETS else None
    if list_named(options.data) is not None:
        return None
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


def _find_own(options: DataOptions) -> tuple[Path, ListSpec | None]:
    """Return where the folder or the list lies that the options name, and how the list is to be read."""
    listed = list_named(options.data)
    named = options.data if listed is None else listed.file
    candidates = [Path(named).expanduser()]
    if options.data_root is not None:
        candidates.append(Path(options.data_root).expanduser() / named)
    for candidate in candidates:
        if is_folder(candidate):
            if named != options.data:
                raise InputError(f"data: {candidate} is a folder, which takes no arguments; leave out what follows '?'")
            return candidate, None
        if listed is not None and is_file(candidate):
            return candidate, listed
        if is_there(candidate):
            raise InputError(
                f"data: expected a folder or a list of images and labels, got the file {candidate}; unpack it if it is "
                "an archive. Save a list as CSV, with the ending .csv"
            )
    looked = " and ".join(str(candidate.resolve()) for candidate in candidates)
    if listed is not None or os.sep in named:
        hint = nearest(candidates[0].name, names_beside(candidates[0]))
        what = "folder" if listed is None else "file"
        raise InputError(f"data: no {what} {looked}; check the path{hint and f'.{hint}'}")
    known = ["digits", *VISION_SETS, *names_beside(candidates[0])]
    raise InputError(
        f"data: {named!r} is neither a known data set nor a folder (looked for {looked})."
        f"{nearest(named, known)} Known sets: digits, {', '.join(VISION_SETS)}"
    )
