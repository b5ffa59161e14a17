"""What is said of images before a training is what they are like."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from spkd.data.folder import load_folder
from spkd.data.images import MemoryImages
from spkd.data.load import load_data
from spkd.data.options import Augment, DataOptions
from spkd.training.notes import notes_of_images
from spkd.training.options import Request
from spkd.training.setup import set_up


def folder(path: Path, counts: Sequence[int], size: tuple[int, int]) -> Path:
    for label, count in enumerate(counts):
        for place in range(count):
            below = path / f"class {label}"
            below.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (place, label, 0)).save(below / f"{place}.png")
    return path


@pytest.mark.parametrize(("counts", "said"), [((10, 10), False), ((10, 29), False), ((40, 10, 20), True)])
def test_unequal_classes_are_told_of(tmp_path: Path, counts: Sequence[int], said: bool) -> None:
    data = load_folder(folder(tmp_path, counts, (8, 8)))
    notes = notes_of_images(data, 8)
    assert len(notes) == 2 * said
    if said:
        trained = [int((data.train.targets == label).sum()) for label in (0, 1)]
        assert notes[0].startswith(
            f"classes are unequal, from {trained[1]} training images of 'class 1' to {trained[0]} of 'class 0': "
        )


@pytest.mark.parametrize(
    ("trained", "held", "said"),
    [
        ((60, 60), (17, 60), "only 17 images of 'class 0', so each is 5.9 points of that class's error"),
        ((60, 60), (17, 50), None),
        ((60, 60), (6, 19), None),
        ((60, 60), (20, 60), None),
        ((60, 20), (25, 19), "only 19 images of 'class 1', so each is 5.3 points of that class's error"),
        ((60, 20), (25, 20), None),
        ((60, 20), (2, 1), "only 1 image of 'class 1', so each is 100.0 points of that class's error"),
        ((60, 60), (60, 0), "no image of 'class 1', so the error of that class is not known"),
    ],
)
def test_few_held_out_images_of_a_class_are_told_of(
    trained: Sequence[int], held: Sequence[int], said: str | None, tmp_path: Path
) -> None:
    def some(counts: Sequence[int]) -> MemoryImages:
        targets = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        return MemoryImages(torch.zeros(len(targets), 3, 8, 8, dtype=torch.uint8), targets)

    data = replace(load_folder(folder(tmp_path, (6, 6), (8, 8))), train=some(trained), val=some(held))
    told = [note for note in notes_of_images(data, 8) if note.startswith("validation set: ")]
    assert told == ([] if said is None else [f"validation set: {said}"])


def test_equal_classes_are_not_told_of() -> None:
    assert notes_of_images(load_data(DataOptions()), 8) == []


@pytest.mark.parametrize(("size", "said"), [((33, 40), True), ((40, 33), True), ((32, 90), False), ((8, 8), False)])
def test_large_files_are_told_of(tmp_path: Path, size: tuple[int, int], said: bool) -> None:
    notes = notes_of_images(load_folder(folder(tmp_path, (6, 6), size)), 8)
    assert len(notes) == said
    if said:
        assert notes[0].startswith("images are large, with a shorter side of 33 pixels, ")
        assert "copies with 16 pixels are enough for an image size of 8" in notes[0]


@pytest.mark.parametrize(
    ("augment", "size", "said"), [("trivial", 32, True), ("trivial", 33, False), ("rand", 8, False)]
)
def test_small_images_that_are_shifted_away_are_told_of(
    tmp_path: Path, augment: Augment, size: int, said: bool
) -> None:
    data = replace(load_folder(folder(tmp_path, (6, 6), (8, 8))), augment=augment)
    assert [note.startswith("warning: --augment trivial shifts") for note in notes_of_images(data, size)] == [
        True
    ] * said


@pytest.mark.parametrize(
    ("given", "said"), [({}, True), ({"epochs": 2}, False), ({"batch_size": 1}, False), ({"epochs": None}, True)]
)
def test_few_steps_are_told_of(tmp_path: Path, given: Mapping[str, object], said: bool) -> None:
    data = DataOptions(str(folder(tmp_path, [12, 12], (8, 8))))
    notes = set_up(Request(model="wrn-10-1", recipe="scratch", data=data, overrides=given)).notes
    line = "the run has only 400 steps: more --epochs may lower the error by more than any method does"
    assert (line in notes) == said
    assert any("the run has only" in note for note in notes) == said
