import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spkd.data.decoding import read_image
from spkd.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FileImages,
    ImageData,
    MemoryImages,
    channel_statistics,
    in_grey,
)
from spkd.errors import InputError


def test_memory_images_keep_each_label_with_its_image():
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    chosen = MemoryImages(pixels, torch.arange(5)).select(torch.tensor([4, 1]))
    assert len(chosen) == 2
    assert chosen.size == 4
    assert [int(chosen.image(i).unique()) for i in range(2)] == chosen.targets.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("pixels", "targets", "name"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "pixels"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "pixels"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "pixels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "targets"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "targets"),
    ],
)
def test_memory_images_of_other_shapes_or_types_are_refused(pixels, targets, name):
    with pytest.raises(InputError, match=rf"^{name}: expected [^\n]+$"):
        MemoryImages(pixels, targets)


def test_file_images_select(file_images):
    chosen = file_images.select(torch.tensor([6, 2]))
    assert chosen.targets.tolist() == [0, 2]
    assert torch.equal(chosen.image(0), file_images.image(6))
    assert tuple(chosen.image(1).shape) == (3, 36, 30)


def test_file_images_refuse_two_channels():
    with pytest.raises(InputError, match=r"^channels: expected 1 \(grey\) or 3 \(colour\), got 2$"):
        FileImages([], torch.zeros(0, dtype=torch.int64), channels=2)


def test_grey_is_pillow_s(file_images):
    pixels = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[0] = torch.arange(81, dtype=torch.uint8).view(9, 9) * 3
    grey = in_grey(MemoryImages(pixels, torch.arange(50)))
    assert torch.equal(grey.targets, torch.arange(50))
    for image, seen in zip(pixels, grey.pixels, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.array_equal(seen.numpy(), expected[None])
    assert in_grey(grey) is grey
    assert torch.equal(in_grey(file_images).image(0), read_image(file_images.paths[0], 1))


def test_channel_statistics_agree_with_numpy():
    pixels = np.random.default_rng(0).integers(0, 200, (20, 3, 6, 6), dtype=np.uint8)
    mean, std = channel_statistics(MemoryImages(torch.from_numpy(pixels), torch.zeros(20, dtype=torch.int64)))
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 2, 3)), atol=5.1e-5)


def test_a_constant_channel_can_be_divided_by():
    images = MemoryImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert channel_statistics(images)[1][0] > 0


def test_statistics_of_files_are_imagenets(file_images):
    assert channel_statistics(file_images) == (IMAGENET_MEAN, IMAGENET_STD)


def test_the_fingerprint_is_of_pixels_classes_and_splits():
    pixels = torch.randint(256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    def fingerprint(pixels, targets=(0, 1, 0, 1, 0, 1), parts=(2, 2, 2), classes=("a", "b")):
        split = [
            MemoryImages(*part) for part in zip(pixels.split(parts), torch.tensor(targets).split(parts), strict=True)
        ]
        data = ImageData("own", classes, 1, *split, 4, False, (0.5,), (0.5,))
        return data.fingerprint

    other = pixels.clone()
    other[5, 0, 3, 3] += 1
    made = [
        fingerprint(pixels),
        fingerprint(other),
        fingerprint(pixels, targets=(0, 1, 0, 1, 1, 0)),
        fingerprint(pixels, parts=(2, 3, 1)),
        fingerprint(pixels, classes=("a", "c")),
    ]
    assert fingerprint(pixels.clone()) == made[0]
    assert len(set(made)) == len(made)


def test_the_fingerprint_of_files_is_what_it_was(tmp_path):
    """A run of an earlier version goes on only where it is."""
    paths = []
    for number, name in enumerate(("a/b/1.png", "a/b.c/2.png", "a/b c/é 'x'.png", "a/b/3.png", "a/b/z/4.png")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
        paths.append(str(path))
    images, none = (FileImages(named, torch.tensor([0, 1, 2, 0, 0])[: len(named)]) for named in (paths, []))
    data = ImageData("own", ("a", "b", "c"), 3, images, images, none, None, True, (0.5,), (0.5,))
    assert data.fingerprint == "cdeaad6541102fe5821c6599062cd982b093993416f62c81996c70a3716330b0"


def test_the_fingerprint_of_files_is_of_names_sizes_and_content_wherever_they_lie(tmp_path, monkeypatch):
    place = tmp_path / "one"
    place.mkdir()
    for number in range(130):
        (place / f"{number:03d}.png").write_bytes(bytes(10))

    def fingerprint(folder):
        images = FileImages(sorted(map(str, folder.iterdir())), torch.zeros(130, dtype=torch.int64))
        return ImageData("own", ("a",), 3, images, images, images, None, True, (0.5,), (0.5,)).fingerprint

    first = fingerprint(place)
    monkeypatch.chdir(tmp_path)
    place = place.rename(tmp_path / "two")
    assert fingerprint(place) == first
    (place / "001.png").write_bytes(bytes(11))  # which is not read
    assert fingerprint(place) != first
    (place / "001.png").write_bytes(bytes(10))
    (place / "000.png").write_bytes(bytes([1] * 10))  # which is
    assert fingerprint(place) != first
    (place / "000.png").write_bytes(bytes(10))
    monkeypatch.setattr("time.sleep", lambda pause: None)
    really, failing = Path.read_bytes, []

    def read(path):
        if failing:
            raise OSError(failing.pop(), "no answer")
        return really(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    failing += [errno.EIO] * 3
    assert fingerprint(place) == first, "a disk that does not answer is asked again"
    failing += [errno.EIO] * 4
    with pytest.raises(InputError, match=r"000\.png cannot be read \(no answer\)"):
        fingerprint(place)
