"""Where the paper's images and pretrained weights lie on this machine, and what to say when they do not."""

from __future__ import annotations

from pathlib import Path

from spkd.data.options import DataOptions
from spkd.data.vision_sets import DEFAULT_ROOT
from spkd.errors import InputError, some

_CIFAR_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt")


def cifar10(root: str | None) -> DataOptions:
    """Return CIFAR-10 below ``root``: torchvision's files, or folders ``train`` and ``test`` of images.

    Raises:
        InputError: when neither is there; the line says what was looked for and where to get it.
    """
    place = _root(root)
    batches = place / "cifar-10-batches-py"
    if batches.is_dir():
        if missing := [name for name in _CIFAR_FILES if not (batches / name).is_file()]:
            raise InputError(f"--data_root {place}: {batches} lacks {', '.join(missing)}; unpack the archive again")
        return DataOptions("cifar10", data_root=str(place))
    for folder in (place, place / "cifar10"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return DataOptions(str(folder))
    raise InputError(
        f"--data_root {place} holds no CIFAR-10: expected {batches} (the Python version from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, unpacked), or train/ and test/ with a folder of images for each "
        f"class; found {_found(place)}"
    )


def cinic10(root: str | None) -> DataOptions:
    """Return CINIC-10 below ``root``: ``cinic-10``, or the root itself, with ``train``, ``valid`` and ``test``.

    Raises:
        InputError: as :func:`cifar10`.
    """
    place = _root(root)
    for folder in (place / "cinic-10", place):
        if all((folder / split).is_dir() for split in ("train", "valid", "test")):
            return DataOptions(str(folder))
    raise InputError(
        f"--data_root {place} holds no CINIC-10: expected train/, valid/ and test/ in {place / 'cinic-10'} (from "
        f"https://datashare.ed.ac.uk/handle/10283/3192, unpacked); found {_found(place)}"
    )


def dtd(root: str | None, partition: int) -> DataOptions:
    """Return a standard partition, 1 to 10, of the describable textures below ``root``.

    Raises:
        InputError: as :func:`cifar10`.
    """
    place = _root(root)
    base = place / "dtd" / "dtd"
    labels = base / "labels" / f"train{partition}.txt"
    if not (base / "images").is_dir() or not labels.is_file():
        missing = labels if (base / "images").is_dir() else base / "images"
        raise InputError(
            f"--data_root {place} holds no DTD: expected {missing} (dtd-r1.0.1.tar.gz from "
            f"https://www.robots.ox.ac.uk/~vgg/data/dtd/, unpacked in {place / 'dtd'}); found {_found(place)}"
        )
    return DataOptions(f"dtd?partition={partition}", data_root=str(place))


def weights_file(root: str | None, name: str) -> str | None:
    """Return the file of weights called ``name`` in ``root``; None without one.

    Raises:
        InputError: when ``root`` is given and is no folder.
    """
    if root is None:
        return None
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(f"--weights_root {root} is no folder; give the one that holds {name}.safetensors")
    return next(
        (str(folder / (name + ending)) for ending in _WEIGHTS_ENDINGS if (folder / (name + ending)).exists()), None
    )


def _root(root: str | None) -> Path:
    return Path(root or DEFAULT_ROOT).expanduser().resolve()


def _found(place: Path) -> str:
    """Return in words what a folder holds."""
    if not place.exists():
        return "no such folder"
    names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith(".")) if place.is_dir() else []
    return some(names, 6) or "nothing"
