"""Torchvision's data sets by name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spkd.data.checked_files import SMALL, open_files
from spkd.data.decoding import reason
from spkd.data.images import ImageData, Images, MemoryImages, channel_statistics
from spkd.data.splits import complete_splits
from spkd.errors import InputError, nearest
from spkd.files import locked

DEFAULT_ROOT = "data"
"""Folder, in the working folder, in which sets are looked for unless another is given."""


@dataclass(frozen=True)
class VisionSet:
    """One of torchvision's sets.

    Args:
        class_name: its class in ``torchvision.datasets``.
        below_root: what the root folder must hold.
        train: the arguments that make it give its training images.
        val: those for validation images, None when it has none.
        test: those for test images, None when it has none.
        flip: whether an image and its mirror image are of one class.
        partitions: how many standard divisions into training, validation and test images it comes with.
        checksums: whether torchvision compares the files with checksums whenever it opens them.
    """

    class_name: str
    below_root: str
    train: Mapping[str, object] = field(default_factory=lambda: {"split": "train"})
    val: Mapping[str, object] | None = None
    test: Mapping[str, object] | None = field(default_factory=lambda: {"split": "test"})
    flip: bool = True
    partitions: int = 1
    checksums: bool = False


_TRAIN, _TEST = {"train": True}, {"train": False}

VISION_SETS: Mapping[str, VisionSet] = {
    "cifar10": VisionSet("CIFAR10", "cifar-10-batches-py", _TRAIN, None, _TEST, checksums=True),
    "cifar100": VisionSet("CIFAR100", "cifar-100-python", _TRAIN, None, _TEST, checksums=True),
    "country211": VisionSet("Country211", "country211", val={"split": "valid"}),
    "dtd": VisionSet("DTD", "dtd/dtd", val={"split": "val"}, partitions=10),
    "eurosat": VisionSet("EuroSAT", "eurosat/2750", {}, None, None),
    "fashionmnist": VisionSet("FashionMNIST", "FashionMNIST/raw", _TRAIN, None, _TEST),
    "fgvcaircraft": VisionSet("FGVCAircraft", "fgvc-aircraft-2013b", val={"split": "val"}),
    "flowers102": VisionSet("Flowers102", "flowers-102", val={"split": "val"}),
    "food101": VisionSet("Food101", "food-101"),
    "gtsrb": VisionSet("GTSRB", "gtsrb", flip=False),
    "imagenette": VisionSet("Imagenette", "imagenette2", test={"split": "val"}),
    "kmnist": VisionSet("KMNIST", "KMNIST/raw", _TRAIN, None, _TEST, flip=False),
    "mnist": VisionSet("MNIST", "MNIST/raw", _TRAIN, None, _TEST, flip=False),
    "oxfordiiitpet": VisionSet("OxfordIIITPet", "oxford-iiit-pet", {"split": "trainval"}),
    "stanfordcars": VisionSet("StanfordCars", "stanford_cars"),
    "stl10": VisionSet("STL10", "stl10_binary"),
    "sun397": VisionSet("SUN397", "SUN397", {}, None, None),
    "svhn": VisionSet("SVHN", "train_32x32.mat", flip=False),
}
"""The sets that :func:`load_vision_set` knows."""


def load_vision_set(
    name: str,
    root: Path,
    *,
    arguments: Mapping[str, object] | None = None,
    download: bool = False,
    skip_bad_images: bool = False,
) -> ImageData:
    """Load one of ``VISION_SETS`` from ``root``, where torchvision keeps it or would download it to.

    A set's own validation images are used where it has them; what it lacks is cut from its others
    (see :func:`spkd.data.splits.complete_splits`).

    Args:
        name: a key of ``VISION_SETS``.
        root: the folder that holds the set's own folder.
        arguments: ``partition`` (from 1, the default) of a set that comes divided in several ways; ``verify``,
            which is false for CIFAR files that are not the original ones (a subset in the same format, say) and
            lets them pass without the checksums of those.
        download: fetch what is not there.
        skip_bad_images: leave out files that cannot be read instead of stopping.

    Raises:
        InputError: when the set is not there or damaged, cannot be downloaded, holds a file that cannot be
            read, or has no such argument.
    """
    vision_set = VISION_SETS[name]
    given = dict(arguments or {})
    _check_arguments(name, given)
    verify = bool(given.pop("verify", True))
    parts: dict[str, Images] = {}
    notes: list[str] = []
    if not verify:
        notes.append(
            f"the files of {name} are read without checksums: they can run code, so use only files that you trust"
        )
    classes: tuple[str, ...] = ()
    for split, own_arguments in (("train", vision_set.train), ("val", vision_set.val), ("test", vision_set.test)):
        if own_arguments is None:
            continue
        dataset = _make(name, root, {**own_arguments, **given}, download, verify)
        parts[split], split_notes = _contents(dataset, skip_bad_images)
        notes.extend(split_notes)
        classes = classes or _class_names(dataset, parts[split])
    splits = complete_splits(parts["train"], parts.get("val"), parts.get("test"), classes)
    train = splits.train
    mean, std = channel_statistics(train)
    return ImageData(
        name=_full_name(name, arguments or {}),
        classes=classes,
        channels=train.pixels.shape[1] if isinstance(train, MemoryImages) else 3,
        train=train,
        val=splits.val,
        test=splits.test,
        native_size=train.size if isinstance(train, MemoryImages) and train.size <= SMALL else None,
        flip=vision_set.flip,
        normalisation_mean=mean,
        normalisation_std=std,
        notes=tuple(notes) + splits.notes,
    )


def _check_arguments(name: str, given: Mapping[str, object]) -> None:
    vision_set = VISION_SETS[name]
    known = {"partition": vision_set.partitions > 1, "verify": vision_set.checksums}
    if unknown := [argument for argument in given if not known.get(argument)]:
        takes = " and ".join(argument for argument, taken in known.items() if taken) or "no argument"
        raise InputError(f"data: {name} has no argument {unknown[0]!r}; it takes {takes}.{nearest(unknown[0], known)}")
    partition = given.get("partition", 1)
    if type(partition) is not int or not 1 <= partition <= vision_set.partitions:
        raise InputError(
            f"data: the partition of {name} must be from 1 to {vision_set.partitions}, got {partition!r}; "
            f"write {name}?partition=1, say"
        )
    if not isinstance(given.get("verify", True), bool):
        raise InputError(f"data: verify of {name} must be true or false, got {given['verify']!r}")


def _full_name(name: str, arguments: Mapping[str, object]) -> str:
    """Return the name with its arguments, as it is given.

    >>> _full_name("dtd", {"partition": 3}), _full_name("cifar10", {"verify": False})
    ('dtd?partition=3', 'cifar10?verify=false')
    """
    written = "&".join(f"{argument}={str(value).lower()}" for argument, value in arguments.items())
    return f"{name}?{written}" if written else name


def _without_checksums(dataset_class: Any) -> Any:
    """Return a CIFAR class that asks of its files only that they are there.

    They are pickles, so whoever made them decides what is run when they are read.
    """
    files = {
        listed: [(file, None) for file, _ in getattr(dataset_class, listed)] for listed in ("train_list", "test_list")
    }
    return type(dataset_class.__name__, (dataset_class,), {**files, "meta": {**dataset_class.meta, "md5": None}})


def _make(name: str, root: Path, arguments: Mapping[str, object], download: bool, verify: bool) -> Any:
    """Make torchvision's data set object, with its failures told in one line."""
    from torchvision import datasets

    vision_set = VISION_SETS[name]
    place = root.resolve() / vision_set.below_root
    if download:
        advice = f"fetch it by other means so that {place} is there, and give --data_root"
        failure = f"data: {name} could not be downloaded to {root.resolve()}"
    else:
        advice = "give the folder that holds it with --data_root, or fetch it with --download"
        failure = f"data: {name} could not be loaded, expected {place}"
        if Path(name).is_dir():
            advice += f"; for the folder {name} here say --data ./{name}"
    dataset_class = getattr(datasets, vision_set.class_name)
    made = dataset_class if verify else _without_checksums(dataset_class)
    try:
        # Results go to stdout, so what torchvision prints there must not.
        with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as held:
            if download:
                try:
                    # One of several processes downloads, and the others find it there.
                    held.enter_context(locked(root, wait=True))
                except InputError:  # where nothing can be written it may be there already
                    return made(str(root), download=False, **arguments)
            return made(str(root), download=download, **arguments)
    except Exception as error:  # downloads, archives, pickles and label files each fail in their own ways
        why = "nothing is there" if not download and not place.exists() else reason(error)
        raise InputError(f"{failure} ({why}); {advice}") from error


def _contents(dataset: Any, skip_bad: bool) -> tuple[Images, tuple[str, ...]]:
    """Return a torchvision set's images and targets, from whichever attributes it keeps them in."""
    if isinstance(getattr(dataset, "data", None), np.ndarray | torch.Tensor):
        targets = _first(dataset, "targets", "labels")
        return MemoryImages(_as_bchw(np.asarray(dataset.data)), torch.as_tensor(np.asarray(targets)).long()), ()
    samples = _first(dataset, "samples", "_samples")
    if samples is not None:
        paths, targets = [path for path, _ in samples], [target for _, target in samples]
    else:
        paths, targets = _first(dataset, "_image_files", "_images"), _first(dataset, "_labels")
    # Some sets list files in the order in which the disk gives them.
    ordered = sorted(zip((str(path) for path in paths), (int(target) for target in targets), strict=True))
    opened = open_files([path for path, _ in ordered], [target for _, target in ordered], skip_bad)
    return opened.images, (*opened.notes, *opened.notes_of_size)


def _first(dataset: Any, *names: str) -> Any:
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _as_bchw(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """Return uint8 images (n, h, w), (n, h, w, 3) or (n, 3, h, w) as (n, c, h, w)."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _class_names(dataset: Any, images: Images) -> tuple[str, ...]:
    """Return the names that a set gives its classes, numbers where it has none."""
    named: Sequence[str | Sequence[str]] | None = getattr(dataset, "classes", None)
    if named is None:
        return tuple(str(number) for number in range(int(images.targets.max()) + 1))
    return tuple(name if isinstance(name, str) else name[0] for name in named)
