"""Files that are checked before anything is done with them tell what is to be known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spkd.data.checked_files import DARK, open_files


def grey(path: Path, most: int, size: tuple[int, int], kind: type[np.generic] = np.uint16) -> str:
    values = np.zeros(size, dtype=kind)
    values[-1, -1] = most
    Image.fromarray(values).save(path)
    return str(path)


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_images_of_12_bits_in_files_of_16_are_warned_of(size: tuple[int, int], ending: str, tmp_path: Path) -> None:
    paths = [grey(tmp_path / f"{number}.{ending}", most, size) for number, most in enumerate((4000, 4095, 1000))]
    paths.append(grey(tmp_path / "b.png", 200, size, np.uint8))
    (warning,) = open_files(paths, [0] * 4, skip_bad=False).notes
    assert warning == (
        f"warning: 3 of 4 image files that were checked have 16 bits, but no value above 4,095 of 65,535 "
        f"({paths[1]}), so they are nearly black: scale their values up to the whole range"
    )
    paths.append(grey(tmp_path / f"z.{ending}", DARK + 1, size))
    assert open_files(paths, [0] * 5, skip_bad=False).notes == ()


def test_few_of_many_files_are_looked_at_and_those_of_8_bits_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark, bright = (grey(tmp_path / f"{kind.__name__}.png", 255, (8, 12), kind) for kind in (np.uint16, np.uint8))
    decoded: list[str] = []
    load = Image.Image.load
    monkeypatch.setattr("spkd.data.checked_files.faults_of", lambda paths: [None] * len(paths))
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.mode) or load(image))
    (warning,) = open_files([bright, dark] * 1025, [0] * 2050, skip_bad=False).notes
    assert warning.startswith("warning: 8 of 16 image files that were checked have 16 bits")
    assert set(decoded) == {"I;16"}
