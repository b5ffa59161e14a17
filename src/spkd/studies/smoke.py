"""Made-up images and weights in the formats of the real ones, so that an experiment can be tried in seconds.

The images of a class share a colour and a pattern, and carry noise; nothing that is measured on them means anything.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spkd.data.options import DataOptions
from spkd.errors import InputError

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TEXTURES = ("banded", "dotted", "woven")
_DTD_IMAGES = 12
PARTITIONS = 2
"""How many of the textures' ten partitions are made."""


def cifar10(root: Path) -> DataOptions:
    """Write CIFAR-10's Python files with 24 images each below ``root`` and return how to read them.

    The files are not the original ones, and are read without the checksums of those.
    """
    _once(root / "cifar-10-batches-py", _write_cifar10)
    return DataOptions("cifar10?verify=false", data_root=str(root))


def cinic10(root: Path) -> DataOptions:
    """Write CINIC-10's folders with few images below ``root`` and return how to read them."""
    _once(root / "cinic-10", _write_cinic10)
    return DataOptions(str(root / "cinic-10"))


def dtd(root: Path, partition: int) -> DataOptions:
    """Write the textures' layout with three classes below ``root`` and return how to read a partition."""
    if partition > PARTITIONS:
        raise InputError(
            f"--seeds: the made-up textures of --scale smoke have {PARTITIONS} partitions, not {partition}"
        )
    _once(root / "dtd" / "dtd", _write_dtd)
    return DataOptions(f"dtd?partition={partition}", data_root=str(root), workers=0)


def pretrained(root: Path, specs: dict[str, str]) -> Path:
    """Write random weights of networks of 1,000 classes to ``root/weights/NAME.safetensors`` and return that folder.

    Args:
        root: a folder.
        specs: the network's spec, by the name of its file.
    """

    def write(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from spkd.models.spec import construct, parse_spec

        for name, spec in specs.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = construct(parse_spec(spec), classes=1000, channels=3, image_size=224)
            save_file(network.state_dict(), folder / f"{name}.safetensors")

    _once(root / "weights", write)
    return root / "weights"


def _once(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill ``folder`` unless it is there; a folder that is there is complete."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def _pictures(label: int, count: int, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return pictures of a class, uint8 of shape (count, h, w, 3)."""
    generator = np.random.default_rng((seed, label))
    rows, columns = np.indices(size)
    wave = np.sin((1 + label % 3) * rows / 3 + (label % 4) * columns / 3)
    colour = np.random.default_rng(label).uniform(60, 200, 3)
    clean = colour + 40 * wave[..., None]
    noisy = clean + generator.normal(0, 25, (count, *size, 3))
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


def _write_cifar10(folder: Path) -> None:
    labels = [place % 10 for place in range(24)]
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        images = np.stack(
            [_pictures(label, 1, (32, 32), 100 * number + place)[0] for place, label in enumerate(labels)]
        )
        rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        _write_pickle(
            folder / name, {"data": rows, "labels": labels, "filenames": [f"{place}.png" for place in labels]}
        )
    _write_pickle(folder / "batches.meta", {"label_names": list(CIFAR_CLASSES), "num_vis": 3072})


def _write_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def _write_cinic10(folder: Path) -> None:
    for seed, (split, count) in enumerate((("train", 6), ("valid", 2), ("test", 2))):
        for label, name in enumerate(CIFAR_CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number, pixels in enumerate(_pictures(label, count, (32, 32), seed)):
                _write_image(folder / split / name / f"cifar10-{split}-{number}.png", pixels, "PNG")


def _write_dtd(folder: Path) -> None:
    (folder / "labels").mkdir()
    files: list[tuple[str, int]] = []
    for label, name in enumerate(_TEXTURES):
        (folder / "images" / name).mkdir(parents=True)
        for number, pixels in enumerate(_pictures(label, _DTD_IMAGES, (100, 120), 0)):
            _write_image(folder / "images" / name / f"{name}_{number:04d}.jpg", pixels, "JPEG")
            files.append((f"{name}/{name}_{number:04d}.jpg", number))
    for partition in range(1, PARTITIONS + 1):
        for place, split in enumerate(("train", "val", "test")):
            chosen = [file for file, number in files if (number + partition) % 3 == place]
            (folder / "labels" / f"{split}{partition}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")


def _write_image(path: Path, pixels: NDArray[np.uint8], kind: str) -> None:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    path.write_bytes(encoded.getvalue())
