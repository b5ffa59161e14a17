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
from spkd.errors import InputError

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
    """

    class_name: str
    below_root: str
    train: Mapping[str, object] = field(default_factory=lambda: {"split": "train"})
    val: Mapping[str, object] | None = None
    test: Mapping[str, object] | None = field(default_factory=lambda: {"split": "test"})
    flip: bool = True


_TRAIN, _TEST = {"train": True}, {"train": False}

VISION_SETS: Mapping[str, VisionSet] = {
    "cifar10": VisionSet("CIFAR10", "cifar-10-batches-py", _TRAIN, None, _TEST),
    "cifar100": VisionSet("CIFAR100", "cifar-100-python", _TRAIN, None, _TEST),
    "country211": VisionSet("Country211", "country211", val={"split": "valid"}),
    "dtd": VisionSet("DTD", "dtd/dtd", val={"split": "val"}),
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


def load_vision_set(name: str, root: Path, *, download: bool = False, skip_bad_images: bool = False) -> ImageData:
    """Load one of ``VISION_SETS`` from ``root``, where torchvision keeps it or would download it to.

    A set's own validation images are used where it has them; what it lacks is cut from its training images
    (see :func:`spkd.data.splits.complete_splits`). DTD is its first standard partition.

    Args:
        name: a key of ``VISION_SETS``.
        root: the folder that holds the set's own folder.
        download: fetch what is not there.
        skip_bad_images: leave out files that cannot be read instead of stopping.

    Raises:
        InputError: when the set is not there or damaged, cannot be downloaded, or holds a file that cannot be
            read.
    """
    vision_set = VISION_SETS[name]
    parts: dict[str, Images] = {}
    notes: list[str] = []
    classes: tuple[str, ...] = ()
    for split, arguments in (("train", vision_set.train), ("val", vision_set.val), ("test", vision_set.test)):
        if arguments is None:
            continue
        dataset = _make(name, root, arguments, download)
        parts[split], split_notes = _contents(dataset, skip_bad_images)
        notes.extend(split_notes)
        classes = classes or _class_names(dataset, parts[split])
    splits = complete_splits(parts["train"], parts.get("val"), parts.get("test"), classes)
    train = splits.train
    mean, std = channel_statistics(train)
    return ImageData(
        name=name,
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


def _make(name: str, root: Path, arguments: Mapping[str, object], download: bool) -> Any:
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
    try:
        # Results go to stdout, so what torchvision prints there must not.
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, vision_set.class_name)(str(root), download=download, **arguments)
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
    return opened.images, opened.notes


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
