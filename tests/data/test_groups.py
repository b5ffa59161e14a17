"""The groups of images, as their paths tell them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spkd.data.groups import Grouping, note_of_parted, numbered
from spkd.data.images import FileImages
from spkd.errors import InputError


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (r"patient\d+", ("patient7",)),
        (r"(patient\d+)", ("patient7",)),
        (r"^(\w+)/.*patient(\d+)", ("cat", "7")),
        (r"patient(\d+)(z)?", ("7", None)),
        (r"([^/]+)_\d+\.png$", ("patient7",)),
        (r"data", None),
        (r"^cat/deep/patient7_1.png$", ("cat/deep/patient7_1.png",)),
    ],
)
@pytest.mark.parametrize("folder", [".", "data", "/data/photos", "/"])
def test_the_expression_is_looked_for_below_the_folder(
    folder: str, expression: str, expected: tuple[str | None, ...] | None
) -> None:
    path = str(Path(folder) / "cat" / "deep" / "patient7_1.png")
    assert Grouping(expression, Path(folder)).of([path]) == [expected]


def test_a_path_of_no_group_is_named() -> None:
    def files(*names: str) -> FileImages:
        return FileImages([f"photos/{name}" for name in names], torch.zeros(len(names), dtype=torch.int64))

    sets = {"train": files("train/a/p1.png", "train/a/1.png"), "val": files("val/a/p2.png", "val/a/2.png")}
    grouping = Grouping(r"p\d", Path("photos"))
    line = r"^groups: p\\d is not found in the paths of 2 of the 4 images, the first: train/a/1.png in photos; give"
    with pytest.raises(InputError, match=line):
        grouping.of_sets(sets)
    sets = {name: images.select(torch.tensor([0])) for name, images in sets.items()}
    assert grouping.of_sets(sets) == {"train": [("p1",)], "val": [("p2",)]}


def test_numbers_follow_the_names_whatever_the_order() -> None:
    groups = [("b", None), ("a", "x"), ("b", None), ("a", None)]
    first = numbered({"train": groups, "test": [("c", "x")]})
    second = numbered({"test": [("c", "x")], "train": groups[::-1]})
    assert first["train"].tolist() == second["train"].tolist()[::-1]
    assert first["test"].tolist() == second["test"].tolist()
    assert (first["train"].tolist(), first["test"].tolist()) == ([2, 0, 2, 1], [3])


def test_groups_in_several_sets_are_counted_once() -> None:
    assert note_of_parted({"train": [("p1",), ("p1",)], "val": [("p2",)], "test": [("p3",)]}) == []
    sets = {"train": [("p1",), ("p9",)], "val": [("p2",), ("p3",)], "test": [("p3",), ("p1",), ("p2",), ("p1",)]}
    assert note_of_parted(sets) == [
        "warning: 3 of 4 groups have images in several of the sets (the first: 'p1' in train and test), so that errors "
        "are too low: keep the images of each in one set"
    ]
    (note,) = note_of_parted({"train": [("cat", "7")], "val": [("cat", "7")], "test": [("cat", "7")]})
    assert note.startswith(
        "warning: 1 of 1 groups has images in several of the sets (the first: 'cat', '7' in train and "
    )
