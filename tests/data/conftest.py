"""Small image files for the tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spkd.data.images import FileImages


def noise(seed: int, width: int, height: int) -> Image.Image:
    """Return an image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that fills a folder: images per class, by path below it."""

    def make(images: dict[str, int], size: int | None = 8, suffix: str = ".png") -> Path:
        seeds = itertools.count()  # no two images are the same
        for label, count in images.items():
            (tmp_path / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                side = size or 100 + 7 * number
                noise(next(seeds), side, side).save(tmp_path / label / f"{number:03d}{suffix}")
        return tmp_path

    return make


@pytest.fixture
def file_images(tmp_path: Path) -> FileImages:
    """Return seven images of unlike sizes in files; image i is of class i % 3."""
    paths = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        noise(number, 24 + 3 * number, 40 - 2 * number).save(path)
        paths.append(str(path))
    return FileImages(paths, torch.arange(7) % 3)
