"""Images without a label: found, read as the training images are, and told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from spkd.data.folder import load_folder
from spkd.data.images import FileImages, ImageData, MemoryImages
from spkd.data.load import load_data
from spkd.data.options import DataOptions
from spkd.data.stream import TrainStream
from spkd.data.unlabelled import with_unlabelled
from spkd.errors import InputError

MakeFolder = Callable[..., Path]


def save_picture(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")


def pictures(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for seed, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_picture(folder / name, size, 100 + seed)
    return folder


@pytest.fixture
def large(make_folder: MakeFolder) -> ImageData:
    return load_folder(make_folder({"photos/cat": 8, "photos/dog": 8}, size=None) / "photos")


@pytest.fixture
def small(make_folder: MakeFolder) -> ImageData:
    return load_folder(make_folder({"small/cat": 8, "small/dog": 8}) / "small")


def test_files_of_any_size_are_found_in_any_folder_below(large: ImageData, tmp_path: Path) -> None:
    sizes = {"b.png": (30, 20), "a/deep/c.jpg": (9, 9), ".hidden/d.png": (8, 8), "a/.e.png": (8, 8)}
    folder = pictures(tmp_path / "more", sizes)
    (folder / "notes.txt").write_text("no image")
    data = with_unlabelled(large, folder)
    assert isinstance(data.unlabelled, FileImages)
    assert data.notes[-1] == f"passed over 1 file without an image's ending in {folder}: 1 .txt"
    assert data.unlabelled.paths == [str(folder / "b.png"), str(folder / "a" / "deep" / "c.jpg")]
    seen = data.seen()
    assert len(seen) == len(large.train) + 2
    assert seen.targets.tolist() == [*large.train.targets.tolist(), -100, -100]
    assert torch.equal(seen.image(0), large.train.image(0))
    assert seen.image(len(large.train)).shape == (3, 20, 30)
    assert large.seen() is large.train


def test_small_ones_are_read_into_memory(small: ImageData, tmp_path: Path) -> None:
    data = with_unlabelled(small, pictures(tmp_path / "more", {"a.png": (8, 8), "b.png": (8, 8)}))
    assert isinstance(data.unlabelled, MemoryImages)
    seen = data.seen()
    assert isinstance(seen, MemoryImages)
    assert torch.equal(seen.pixels, torch.cat([small.train.pixels, data.unlabelled.pixels]))


def test_beside_grey_images_they_are_read_as_grey(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "more", {"a.png": (8, 8)})
    data = load_data(DataOptions(), str(folder))
    assert isinstance(data.unlabelled, MemoryImages)
    assert torch.equal(data.unlabelled.pixels[0], FileImages([str(folder / "a.png")], torch.tensor([0]), 1).image(0))


def test_labels_are_as_they_were_and_what_was_added_has_a_fingerprint(small: ImageData, tmp_path: Path) -> None:
    first = with_unlabelled(small, pictures(tmp_path / "one", {"a.png": (8, 8)}))
    moved = with_unlabelled(small, (tmp_path / "one").rename(tmp_path / "two"))
    assert first.fingerprint == small.fingerprint
    assert small.unlabelled_fingerprint is None
    assert first.unlabelled_fingerprint == moved.unlabelled_fingerprint
    save_picture(tmp_path / "two" / "a.png", (8, 8), 7)
    assert with_unlabelled(small, tmp_path / "two").unlabelled_fingerprint != first.unlabelled_fingerprint


@pytest.mark.parametrize("height", [8, 9], ids=["in memory", "in files"])
def test_validation_and_test_images_are_left_out(tmp_path: Path, height: int) -> None:
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(8)]
    labelled = pictures(tmp_path / "photos", dict.fromkeys(names, (8, height)))
    data = load_folder(labelled)
    (tmp_path / "copies").mkdir()
    for number, path in enumerate(labelled.rglob("*.png")):
        (tmp_path / "copies" / f"{number}.png").write_bytes(path.read_bytes())
    held_out = len(data.val) + len(data.test)
    for folder in (labelled, tmp_path / "copies"):
        added = with_unlabelled(data, folder)
        assert added.unlabelled is not None
        shown = {added.unlabelled.image(place).numpy().tobytes() for place in range(len(added.unlabelled))}
        assert shown == {data.train.image(place).numpy().tobytes() for place in range(len(data.train))}
        assert f"left out {held_out} of {held_out + len(data.train)} images" in added.notes[-1]
    (tmp_path / "tests").mkdir()
    Image.fromarray(data.test.image(0).permute(1, 2, 0).numpy()).save(tmp_path / "tests" / "a.png", format="PNG")
    with pytest.raises(InputError, match="are validation or test images"):
        with_unlabelled(data, tmp_path / "tests")


def test_an_epoch_shows_each_of_them_once(small: ImageData, tmp_path: Path) -> None:
    data = with_unlabelled(small, pictures(tmp_path / "more", {f"{n}.png": (8, 8) for n in range(6)}))
    stream = TrainStream(
        data.seen(), image_size=8, flip=True, batch_size=4, seed=0, device=torch.device("cpu"), workers=0
    )
    targets = torch.cat([targets for _, targets in stream.epoch(0)])
    assert sorted(targets.tolist()) == sorted([-100] * 6 + small.train.targets.tolist())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, "no folder .*more; give a folder with images"),
        ({"a.txt": (8, 8)}, "no image in"),
        ({"a.png": (8, 8), "b.png": (9, 9)}, "the training images are of 8 × 8 pixels, .*b.png is of 9 × 9"),
        ({"a.png": (16, 8)}, "the training images are of 8 × 8 pixels, .*a.png is of 16 × 8"),
        ({"a.png": (16, 16)}, "the training images are of 8 × 8 pixels, .*a.png is of 16 × 16"),
    ],
)
def test_what_cannot_be_used_is_refused(
    small: ImageData, tmp_path: Path, sizes: dict[str, tuple[int, int]], expected: str
) -> None:
    folder = pictures(tmp_path / "more", sizes)
    with pytest.raises(InputError, match=f"unlabelled: {expected}"):
        with_unlabelled(small, folder)


def test_a_broken_one_is_named_or_left_out(small: ImageData, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "more", {"a.png": (8, 8), "b.png": (8, 8)})
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        with_unlabelled(small, folder)
    data = with_unlabelled(small, folder, skip_bad_images=True)
    assert isinstance(data.unlabelled, MemoryImages)
    assert torch.equal(data.unlabelled.pixels[0], FileImages([str(folder / "b.png")], torch.tensor([0])).image(0))
    assert "left out 1 of 2 files" in data.notes[-1]


@pytest.mark.parametrize("height", [8, 9], ids=["in memory", "in files"])
def test_images_of_groups_that_are_held_out_are_left_out(tmp_path: Path, height: int) -> None:
    names = [f"{label}/p{number:02d}_{shot}.png" for label in "ab" for number in range(10) for shot in range(2)]
    labelled = pictures(tmp_path / "photos", dict.fromkeys(names, (8, height)))
    options = DataOptions(str(labelled), groups=r"p\d+")
    data = load_data(options)
    learnt, held_out = (
        sorted({Path(path).name[:3] for images in sets for path in images.paths or ()})
        for sets in ((data.train,), (data.val, data.test))
    )
    assert not set(learnt) & set(held_out)
    others = [f"b/{group}_7.png" for group in (*learnt, *held_out, "p77")] + ["stray.png"]
    more = tmp_path / "more"
    (more / "b").mkdir(parents=True)
    for seed, name in enumerate(others):
        save_picture(more / name, (8, height), 500 + seed)
    origin = Path(next(iter(data.test.paths or ())))
    for copy in ("stray.png", f"{held_out[0]}_8.png"):
        (more / "b" / copy).write_bytes(origin.read_bytes())
    added = load_data(options, str(more))
    assert added.unlabelled is not None
    kept = {str(Path(path).relative_to(more)) for path in added.unlabelled.paths or ()}
    assert kept == {*(f"b/{group}_7.png" for group in (*learnt, "p77")), "stray.png"}
    total = len(others) + 2
    assert added.notes[-3:] == (
        f"left out 2 of {total} images without a label, which are validation or test images",
        f"left out {len(held_out)} of {total} images without a label, which belong to groups of validation or test "
        "images",
        f"2 of {total} images without a label belong to no group, the first: {more / 'stray.png'}",
    )
    plain = load_data(DataOptions(str(labelled)), str(more))
    assert plain.unlabelled is not None
    assert len(plain.unlabelled) >= total - 2, "only copies are left out"
    for path in more.rglob("*.png"):
        if path.name[:3] not in held_out:
            path.unlink()
    with pytest.raises(InputError, match="are validation or test images, or of groups of such; give others"):
        load_data(options, str(more))
